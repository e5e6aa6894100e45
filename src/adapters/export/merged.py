"""A whole model with an adapter in its weights, for everything that opens plain models of Transformers."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from adapters.checkpoint.heads import has_flexible_heads
from adapters.errors import MergeError, UnsupportedError
from adapters.methods.base import AffineAdapter
from adapters.runtime.engine import Engine
from adapters.runtime.merging import check_readers
from adapters.sites.site import AffineSite, ExpertsSite

SHARD = 2 * 1024**3
"""Bytes of tensors in one file, and so about what is held in memory beside the model."""

Values = Callable[[], Tensor]


@torch.no_grad()
def write_merged(engine: Engine, name: str, folder: Path) -> None:
    """Write the model with the adapter `name` in its weights; the model itself does not change.

    Tensors are merged and written one file after the other.

    Args:
        engine: Of the model.
        name: The adapter. If it is merged already, the weights are written as they are.
        folder: An existing folder.
    Raises:
        AdapterNameError: there is no adapter of this name.
        MergeError: its update depends on the input, or another adapter is merged.
        UnsupportedError: some of it is no change of weights, or the weights are quantised or not in memory.
    """
    engine.require(name)
    model: Any = engine.base if has_flexible_heads(engine.root) else engine.root
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedError(
            f"{type(model).__name__} is no model of Transformers, so nothing says which files it has. Call "
            "merge_adapter and save it as you save your models."
        )
    if others := [other for other in engine.merged if other != name]:
        raise MergeError(f"Adapter {others[0]!r} is merged into the base model. Call reset_adapter first.")
    changed = {} if name in engine.merged else _changed(engine, name)
    ours = {id(t) for group in engine.added for parts in group.values() for part in parts for t in _tensors(part)}
    state = {key: t for key, t in model.state_dict(keep_vars=True).items() if id(t) not in ours}
    if missing := next((key for key, tensor in state.items() if tensor.is_meta), None):
        raise UnsupportedError(f"{missing} is not in memory (offloaded). Load the whole model to export it.")
    state = remove_tied_weights_from_state_dict(state, model)
    _write_shards(_shards(model, state, changed), folder)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _tensors(part: Any) -> Iterator[Tensor]:
    return iter(part.module.state_dict(keep_vars=True).values())


def _changed(engine: Engine, name: str) -> dict[int, Values]:
    """The id of every parameter that an adapter changes, and what makes its new values."""
    by_site: dict[AffineSite, list[AffineAdapter]] = {}
    for part in engine.parts[name]:
        module: Any = part.module
        if (hooked := part.hooked) is None:
            continue
        site = hooked.site
        if not isinstance(module, AffineAdapter):
            raise UnsupportedError(
                f"Adapter {name!r} cannot be written into weights: {type(module).__name__} at {site.path} is no change "
                "of weights. Those of linear maps, norms and embeddings are, such as LoRA, DoRA, IA3 and LN tuning. "
                "Others run in this library alone."
            )
        if site.call is not None:
            raise MergeError(f"{site.path} is called {site.call[1]} times in a layer, and {name!r} acts in one call.")
        if site.packed:
            raise UnsupportedError(
                f"{site.path} is quantised, and a merged model would have to be quantised anew. Open the base model in "
                "16 or 32 bit, load the adapter there and export it."
            )
        check_readers(name, hooked, module)
        by_site.setdefault(site, []).append(module)
    found: dict[int, Values] = {}
    for site, modules in by_site.items():
        modules.sort(key=lambda module: module.tap != "input")  # what a map reads comes first, next to its weight
        experts = isinstance(site, ExpertsSite)
        weight: Any = site.stored if experts else site.module.weight  # type: ignore[attr-defined]
        bias = site.stored_bias if isinstance(site, ExpertsSite) else site.bias
        _merged(site, modules)  # what depends on the input is refused before anything is written
        found[id(weight)] = partial(_merged_weight, site, modules)
        if bias is not None:
            found[id(bias)] = partial(_merged_bias, site, modules)
    return found


def _merged_weight(site: AffineSite, modules: list[AffineAdapter]) -> Tensor:
    return _merged(site, modules)[0]


def _merged_bias(site: AffineSite, modules: list[AffineAdapter]) -> Tensor:
    bias = _merged(site, modules)[1]
    assert bias is not None
    return bias


def _merged(site: AffineSite, modules: list[AffineAdapter]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a place, as they are stored, with these modules in them."""
    weight, bias = site.weight, site.bias
    for module in modules:
        alone = module.merged_bias(bias)
        weight, bias = module.merged(weight, bias) if alone is None else (weight, alone)
    if isinstance(site, ExpertsSite):
        stored = weight.mT if site.transposed else weight
        held = site.stored_bias
        return stored.view(site.stored.shape), None if bias is None or held is None else bias.view(held.shape)
    return site.as_stored(weight), bias


def _shards(model: Any, state: Mapping[str, Tensor], changed: Mapping[int, Values]) -> Iterator[dict[str, Tensor]]:
    """The tensors by their names in files, in portions of about `SHARD` bytes; those of a layer together."""
    shard: dict[str, Tensor] = {}
    size = 0
    for _, names in groupby(state, lambda name: (re.match(r"(.*?\.\d+)\.", name) or [name.partition(".")[0]])[0]):
        values = {}
        for name in names:
            own, make = state[name], changed.get(id(state[name]))
            values[name] = (own.detach() if make is None else make()).to("cpu", own.dtype).contiguous()
        for name, tensor in revert_weight_conversion(model, values).items():
            bytes_ = tensor.numel() * tensor.element_size()
            if shard and size + bytes_ > SHARD:
                yield shard
                shard, size = {}, 0
            shard[name] = tensor
            size += bytes_
    yield shard


def _write_shards(shards: Iterator[dict[str, Tensor]], folder: Path) -> None:
    """One file, or several and their index, as Transformers names them."""
    stem = SAFE_WEIGHTS_NAME.removesuffix(".safetensors")
    files: list[tuple[Path, list[str]]] = []
    size = 0
    for shard in shards:
        known: set[int] = set()
        for name, tensor in shard.items():  # safetensors takes no memory twice
            if tensor.data_ptr() in known:
                shard[name] = tensor.clone()
            known.add(tensor.data_ptr())
            size += tensor.numel() * tensor.element_size()
        path = folder / f"{stem}-{len(files) + 1:05}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        files.append((path, list(shard)))
    if len(files) == 1:
        files[0][0].rename(folder / SAFE_WEIGHTS_NAME)
        return
    places = {}
    for number, (path, names) in enumerate(files, 1):
        file = f"{stem}-{number:05}-of-{len(files):05}.safetensors"
        path.rename(folder / file)
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
