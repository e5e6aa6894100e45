"""On which base model was an adapter trained? A few of its weights travel with the files, and are compared at loading.

What is sampled: numbers of the matrices of the first and the last layer, as they are without a merged adapter. So
neither merged adapters nor other embeddings or heads make a difference; nor does a cast to 16 bit, or base weights that
training has moved a little: they are compared with a wide tolerance.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from adapters.checkpoint.names import CONTAINERS
from adapters.runtime.engine import Engine
from adapters.sharding import is_spread, whole
from adapters.sites.site import LayerSite

logger = logging.getLogger(__name__)

ENTRY = "base_model_sample"
"""Name of a tensor on disk -> some of its numbers: stands beside the tensors in a safetensors file."""
PER_TENSOR, MOST_TENSORS = 8, 16
TOLERANCE = 0.1
"""How far the sample of the same base model may be off, as part of its length."""
NOT_BASE = {*CONTAINERS, "prefix_tuning", "prompt_tuning", "reft_layer"}
"""Names of modules that hold adapters."""

_said: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()


@torch.no_grad()
def sample(engine: Engine) -> dict[str, str]:
    """Some numbers of the base model; none where its weights are packed or elsewhere (on `meta`)."""
    layers = [
        hooked.site for hooked in engine.hooked if isinstance(hooked.site, LayerSite) and hooked.site.role == "layer"
    ]
    unmerged = dict(_unmerged(engine))
    found: dict[str, Tensor] = {}
    for site in {id(site): site for site in (*layers[:1], *layers[-1:])}.values():
        for name, weight in _matrices(site.module, site.path, unmerged):
            numbers = weight.detach().reshape(-1)
            found[engine.names.on_disk(name)] = numbers[:: max(1, len(numbers) // PER_TENSOR)][:PER_TENSOR]
    chosen = dict(list(found.items())[:MOST_TENSORS])
    if len({numbers.device for numbers in chosen.values()}) == 1:
        values = iter(torch.cat([numbers.float() for numbers in chosen.values()]).tolist())
        return {name: " ".join(f"{next(values):.4g}" for _ in numbers) for name, numbers in chosen.items()}
    return {name: " ".join(f"{value:.4g}" for value in numbers.float().tolist()) for name, numbers in chosen.items()}


def _unmerged(engine: Engine) -> Iterator[tuple[int, Tensor | None]]:
    """Linear map, by id -> its weight before an adapter was merged into it, None if that is not known."""
    for name, merged in reversed(
        engine.merged.items()
    ):  # of a map under several adapters, the last word is the first's
        for part in engine.parts[name]:
            if part.hooked is not None and engine.is_merged(name, part):
                yield id(part.hooked.site.module), None
        for hooked, weight, _ in merged.before or ():
            module = hooked.site.module
            if not hooked.site.packed:
                yield id(module), module.weight if weight is None else weight


def _matrices(module: nn.Module, path: str, unmerged: Mapping[int, Tensor | None]) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module._parameters.items():
        if parameter is None or (type(parameter) is not nn.Parameter and not is_spread(parameter)):
            continue
        if parameter.dim() != 2 or not parameter.is_floating_point() or parameter.is_meta:
            continue
        if (known := unmerged.get(id(module), parameter)) is not None:
            yield f"{path}.{name}", whole(known)
    for name, child in module.named_children():
        if name not in NOT_BASE:
            yield from _matrices(child, f"{path}.{name}", unmerged)


def warn_if_other(engine: Engine, saved: Mapping[str, Any], what: str) -> None:
    """Log a warning, once for each model and base, if what was saved belongs to another base model.

    Args:
        engine: Of the model.
        saved: Content of the config file.
        what: Words for the warning, such as "Adapter 'a' in ./folder".
    """
    stored = saved.get(ENTRY)
    if not isinstance(stored, Mapping):
        return
    own = sample(engine)
    pairs = [(_numbers(stored[name]), _numbers(own[name])) for name in own if name in stored]
    there, here = ([x for pair in pairs for x in pair[side]] for side in (0, 1))
    if len(there) != len(here) or not any(here):
        return
    apart = sum((a - b) ** 2 for a, b in zip(there, here)) ** 0.5
    key = repr(sorted(stored.items()))
    if apart <= TOLERANCE * sum(b * b for b in here) ** 0.5 or key in _said.setdefault(engine.base, set()):
        return
    _said[engine.base].add(key)
    logger.warning(
        "%s was trained on a base model with other weights (%s) than this one (%s). It fits by its shapes, but will "
        "hardly do what it did. Load it into the model that it was trained on.",
        what,
        saved.get("model_name") or "without a name",
        getattr(engine.root.config, "name_or_path", None) or "without a name",
    )


def _numbers(text: Any) -> list[float]:
    try:
        return [float(number) for number in str(text).split()]
    except ValueError:
        return []
