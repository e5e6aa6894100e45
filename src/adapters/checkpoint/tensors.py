"""How do tensors get into a file and out again? Whole files, no code in them, one error for all that is unreadable."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.checkpoint.layout import Layout, replacing
from adapters.errors import CheckpointError, CheckpointNotFound

logger = logging.getLogger(__name__)


def write_tensors(folder: Path, layout: Layout, tensors: Mapping[str, Tensor], use_safetensors: bool = True) -> None:
    """Write a checkpoint's tensors; one that has several names is written under each.

    Args:
        folder: An existing folder.
        layout: Which file names to use.
        tensors: Names as on disk -> tensors as in the model.
        use_safetensors: Write safetensors, or else a pickle file.
    """
    memory: set[int] = set()
    plain = {name: _on_its_own(tensor, memory) for name, tensor in tensors.items()}
    written, other = layout.weights if use_safetensors else reversed(layout.weights)
    with replacing(folder / written) as temporary:
        if use_safetensors:
            save_file(plain, temporary, metadata={"format": "pt"})
        else:
            torch.save(plain, temporary)
    (folder / other).unlink(missing_ok=True)


def _on_its_own(tensor: Tensor, memory: set[int]) -> Tensor:
    """`tensor` on the CPU; a copy if its memory holds more, or belongs to a tensor that comes before."""
    plain = tensor.detach().to("cpu").contiguous()
    storage = plain.untyped_storage()
    if storage.nbytes() != plain.numel() * plain.element_size() or storage.data_ptr() in memory:
        return plain.clone()
    memory.add(storage.data_ptr())
    return plain


def read_tensors(folder: Path, layout: Layout, use_safetensors: bool = True) -> dict[str, Tensor]:
    """Read a checkpoint's tensors, from whichever file lies there.

    Args:
        folder: Where they were saved.
        layout: Which file names to look for.
        use_safetensors: Which file to take if both lie there.
    Raises:
        CheckpointNotFound: there is neither file.
        CheckpointError: the file is damaged, or holds anything but named tensors.
    """
    for name in layout.weights if use_safetensors else reversed(layout.weights):
        path = folder / name
        if path.is_file():
            if use_safetensors and name == layout.pickle:
                logger.info("%s has no %s, so %s is read.", folder, layout.safetensors, name)
            return read_safetensors(path) if name == layout.safetensors else read_pickle(path)
    raise CheckpointNotFound(f"{folder} has no weights: neither {' nor '.join(layout.weights)}.")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    try:
        return dict(load_file(path, device="cpu"))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """All tensors of a file that torch.save wrote. Nothing in it is executed."""
    data = load_pickle(path)
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds {type(data).__name__}, but a dict of tensors is needed.")
    for name, tensor in data.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.is_meta:
            raise CheckpointError(f"{path} holds {type(tensor).__name__} under {name!r}, but only tensors are allowed.")
    return dict(data)


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
