"""What lies in a folder? File names, what the JSON files hold, and how they are read and written.

    my_adapter/
        adapter_config.json            {"config": {...}, "name": ..., "model_type": ..., "version": ...}
        adapter.safetensors            <module path>.<container>.<adapter>.<inner name> -> tensor
        head_config.json               the prediction head that was trained with it, if any
        model_head.safetensors
    an_adapter_of_peft/                 the same config file with other entries, see `checkpoint/peft/`
        adapter_config.json, adapter_model.safetensors
    my_fusion/
        adapter_fusion_config.json, model_adapter_fusion.safetensors
    my_setup/
        adapter_setup.json             a composition block; one sub-folder per adapter, fusion and head
    my_embedding/
        embedding.pt, tokenizer/

Beside an adapter or a whole model lies adapter_interface.json if its sites are described by an interface.
Instead of safetensors a `.bin` file (a pickled dict of tensors) may lie there. Names of tensors: `names.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Literal

from adapters._version import __version__
from adapters.composition.blocks import BLOCK_TYPES
from adapters.errors import AdapterNameError, CheckpointError, CheckpointNotFound
from adapters.sharding import class_of

PathLike = str | os.PathLike[str]
"""A path, as callers give it."""

Files = bool | Literal["both"]
"""What tensors are written to: safetensors (True), or a pickle file (False), the only one that version 1 of the library
looks for unless it is told `use_safetensors=True`, or "both"."""


@dataclass(frozen=True)
class CheckpointKind:
    """The three files of one kind of checkpoint. `noun` is for messages."""

    noun: str
    config: str
    safetensors: str
    pickle: str

    @property
    def weights(self) -> tuple[str, str]:
        """Names that the weights may have, ours first."""
        return self.safetensors, self.pickle

    @property
    def files(self) -> set[str]:
        """All names that its files may have."""
        return {self.config, *self.weights}


ADAPTER = CheckpointKind("adapter", "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin")
HEAD = CheckpointKind("prediction head", "head_config.json", "model_head.safetensors", "pytorch_model_head.bin")
PEFT = CheckpointKind("PEFT adapter", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
OWNED = {
    owns.noun: CheckpointKind(
        owns.title, f"{owns.stem}_config.json", f"model_{owns.stem}.safetensors", f"pytorch_model_{owns.stem}.bin"
    )
    for owns in (block.owns for block in BLOCK_TYPES.values())
    if owns is not None
}
"""What blocks own, by the noun of their kind."""
FUSION = OWNED["fusion"]
KINDS = ADAPTER, HEAD, *OWNED.values(), PEFT
SETUP_FILE = "adapter_setup.json"
INTERFACE_FILE = "adapter_interface.json"
EMBEDDING_FILE = "embedding.pt"
TOKENIZER_FOLDER = "tokenizer"

VERSION = f"adapters.{__version__}"
"""Value of "version" in our files."""


def version_numbers(version: str) -> tuple[int, ...]:
    """(1, 3, 0) of "1.3.0.dev1"."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


def description(model: Any, name: str | None, config: Any) -> dict[str, Any]:
    """What every config file says about the model it was saved from."""
    return {
        "config": config,
        "hidden_size": getattr(model.config, "hidden_size", None),
        "model_class": class_of(model).__name__,
        "model_name": getattr(model.config, "name_or_path", None),
        "model_type": model.config.model_type,
        "name": name,
        "version": VERSION,
    }


def write_interface(model: Any, folder: Path) -> None:
    """Write the interface that describes a model's sites, if there is one."""
    if (interface := model._engine.interface) is not None:
        data = {"interface": interface.to_dict(), "model_type": model.config.model_type, "version": VERSION}
        write_json(folder / INTERFACE_FILE, data)


def with_meta(data: Mapping[str, Any], meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """`data` and those entries of `meta` that it does not have."""
    return {**(meta or {}), **data}


def write_json(path: Path, data: Mapping[str, Any], sort_keys: bool = True) -> None:
    """Write `data` as UTF-8 JSON with indent 2."""
    path.write_text(json.dumps(data, indent=2, sort_keys=sort_keys), encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object.

    Raises:
        CheckpointNotFound: there is no such file.
        CheckpointError: it is no JSON, or no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointNotFound(f"There is no file {path}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable JSON file: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}, but an object with named entries is needed.")
    return data


def make_folder(path: PathLike) -> Path:
    """The folder at `path`, made if it is not there.

    Raises:
        CheckpointError: a file is in its place.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CheckpointError(f"{folder} is a file. Give the path of a folder to save in.") from None
    return folder


def superseded(saved: Collection[str], present: Collection[str]) -> set[str]:
    """Which files of a folder do not belong to its new state, although nothing of this name is saved.

    A kind of checkpoint that is saved replaces all its files. An adapter, fusion or set-up that is saved without a head
    has none from now on, unless the folder holds another of them, whose head it may be.

    Args:
        saved: Names that are being saved.
        present: Names in the folder.
    """
    gone = {name for kind in KINDS if kind.config in saved for name in kind.files}
    owners = {ADAPTER.config, *(kind.config for kind in OWNED.values()), SETUP_FILE}
    if owners.intersection(saved) and not owners.intersection(present).difference(saved):
        gone |= HEAD.files
    return gone.intersection(present).difference(saved)


def subfolder(folder: PathLike, name: str) -> Path:
    """The folder called `name` inside of `folder`.

    Raises:
        AdapterNameError: such a path would lead out of `folder`.
    """
    for flavour in (PurePosixPath(name), PureWindowsPath(name)):
        if flavour.anchor or not flavour.parts or ".." in flavour.parts:
            raise AdapterNameError(f"{name!r} cannot be the name of a folder inside of {os.fspath(folder)!r}.")
    return Path(folder, name)
