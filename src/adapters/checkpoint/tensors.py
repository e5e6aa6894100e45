"""How do a config and its tensors get into files and out? Whole files, no code in them, one error for all damage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapters.checkpoint.layout import CheckpointKind, Files, read_json, with_meta, write_json
from adapters.errors import CheckpointError, CheckpointNotFound
from adapters.sharding import whole

logger = logging.getLogger(__name__)

DIGEST = "config_digest"
"""Entry of the metadata of a file of tensors: what `_digest` says of the config that was saved with them."""
METADATA = "adapter_metadata"
"""Where pickle files have their metadata: an attribute of their OrderedDict, as `_metadata` in torch's state dicts."""
NOTES = ("base_model_sample", "chained")
"""Entries of a config that are kept in the metadata, because other programs compare config files."""


def write_checkpoint(
    folder: Path,
    kind: CheckpointKind,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any] | None = None,
    use_safetensors: Files = True,
) -> None:
    """Write a config and its tensors; a tensor that has several names is written under each.

    Args:
        folder: An existing folder.
        kind: Which file names to use.
        config: Content of the config file.
        tensors: Names as on disk -> tensors as in the model.
        meta: More entries for the config file.
        use_safetensors: Write safetensors (True), a pickle file (False), or "both".
    """
    memory: set[int] = set()
    plain = {name: _on_its_own(tensor, memory) for name, tensor in tensors.items()}
    notes = {name: json.dumps(config[name]) for name in NOTES if name in config}
    config = {name: value for name, value in config.items() if name not in NOTES}
    metadata = {DIGEST: _digest(config), **notes}
    if use_safetensors not in (True, False, "both"):
        raise CheckpointError(f"use_safetensors is {use_safetensors!r}. Allowed: True, False, 'both'.")
    if use_safetensors:
        save_file(plain, folder / kind.safetensors, metadata={"format": "pt", **metadata})
        _order_metadata(folder / kind.safetensors)
    if use_safetensors is not True:
        stored = OrderedDict(plain)
        setattr(stored, METADATA, metadata)
        torch.save(stored, folder / kind.pickle)
    write_json(folder / kind.config, with_meta(config, meta))


def _on_its_own(tensor: Tensor, memory: set[int]) -> Tensor:
    """`tensor` on the CPU; a copy if its memory holds more, or belongs to a tensor that comes before."""
    plain = whole(tensor).detach().to("cpu").contiguous()
    storage = plain.untyped_storage()
    if storage.nbytes() != plain.numel() * plain.element_size() or storage.data_ptr() in memory:
        return plain.clone()
    memory.add(storage.data_ptr())
    return plain


def _order_metadata(path: Path) -> None:
    """Write the metadata of a safetensors file in alphabetical order: the library writes them in any, new each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def _digest(config: Mapping[str, Any]) -> str:
    """16 hex digits that depend on the name and the hyperparameters in a config file."""
    said = json.dumps([config.get("name"), config.get("config")], sort_keys=True)
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def read_checkpoint(
    folder: Path, kind: CheckpointKind, use_safetensors: bool = True
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content of the config file, and the tensors of whichever file lies beside it.

    Args:
        folder: Where they were saved; to be read inside of `atomic.reading`.
        kind: Which file names to look for.
        use_safetensors: Which file of tensors to take if both lie there.
    Raises:
        CheckpointNotFound: a file is not there.
        CheckpointError: a file is damaged or holds other things, or the two were not saved together.
    """
    config = read_json(folder / kind.config)
    for name in kind.weights if use_safetensors else reversed(kind.weights):
        path = folder / name
        if path.is_file():
            break
    else:
        raise CheckpointNotFound(f"{folder} has no weights: neither {' nor '.join(kind.weights)}.")
    if name == kind.pickle:
        if use_safetensors:
            logger.info("%s has no %s, so %s is read.", folder, kind.safetensors, name)
        tensors, metadata = read_pickle(path)
    else:
        tensors, metadata = _read_safetensors(path)
    if metadata.get(DIGEST, _digest(config)) != _digest(config):
        logger.warning(
            "%s and %s beside it were not saved together: one of the two is of another state of the %s, or was edited.",
            path,
            kind.config,
            kind.noun,
        )
    return {**config, **_notes(metadata)}, tensors


def _notes(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Entries that stand beside the tensors, since other programs compare config files."""
    found: dict[str, Any] = {}
    for name in NOTES:
        with contextlib.suppress(ValueError):
            found |= {name: json.loads(metadata[name])} if name in metadata else {}
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    return _read_safetensors(path)[0]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None


def read_pickle(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """All tensors of a file that torch.save wrote, and its metadata. Nothing in it is executed."""
    data = load_pickle(path)
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds {type(data).__name__}, but a dict of tensors is needed.")
    for name, tensor in data.items():
        if problem := "not a string" if not isinstance(name, str) else not_plain(tensor):
            raise CheckpointError(f"{path} holds {type(tensor).__name__} under {name!r}, which is {problem}.")
    metadata = getattr(data, METADATA, None)
    texts = metadata.items() if isinstance(metadata, Mapping) else ()
    return dict(data), {name: text for name, text in texts if isinstance(name, str) and isinstance(text, str)}


def not_plain(value: Any) -> str:
    """Why something cannot be a stored tensor; empty if it can."""
    if not isinstance(value, Tensor):
        return "no tensor: only tensors are allowed"
    if type(value) not in (Tensor, torch.nn.Parameter):
        return "a subclass of torch.Tensor: only plain tensors are allowed"
    odd = {"on device 'meta'": value.is_meta, "quantised": value.is_quantized, "nested": value.is_nested}
    odd["sparse"] = value.layout is not torch.strided
    return next((f"{word}: only dense tensors with values are allowed" for word, holds in odd.items() if holds), "")


def load_pickle(path: Path) -> Any:
    """What torch.save wrote into a file, if that is tensors and plain data.

    Raises:
        CheckpointError: the file is damaged, or would run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path} is not a file of tensors that can be read safely: {reason}") from None
    except Exception as error:
        raise CheckpointError(f"{path} is not a file of tensors: {type(error).__name__}: {error}") from None
