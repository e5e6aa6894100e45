"""How does a SentenceTransformer open a model that was saved with its adapters? As a type of model that is ours.

`checkpoint/inner.py` has the file. What is registered is known to all Auto classes of transformers, and so to libraries
that open models by them.
"""

from __future__ import annotations

import copy
import os
from itertools import chain
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from adapters import auto
from adapters.checkpoint.callers import loading_trainer
from adapters.checkpoint.folders import load_folders
from adapters.checkpoint.full_model import add_trained
from adapters.checkpoint.inner import ACTIVE, BASE, ENTRIES, INNER_TYPE, MODEL_TYPE, PLACE
from adapters.checkpoint.names import added_tensors
from adapters.checkpoint.trainers import holds_what_trained
from adapters.composition.blocks import AdapterCompositionBlock
from adapters.errors import CheckpointError, CheckpointNotFound
from adapters.heads.model import HUB
from adapters.model import AdapterModelMixin, init, load_model


class InnerConfig(PreTrainedConfig):
    """What config.json says of a model with adapters that sentence-transformers has saved."""

    model_type = MODEL_TYPE

    def own(self) -> Any:
        """The config of the model itself."""
        data = {key: value for key, value in self.to_dict().items() if key not in ENTRIES}
        data["model_type"] = getattr(self, INNER_TYPE)
        return CONFIG_MAPPING[data["model_type"]].from_dict(data)


class InnerModel:
    """Opens such a model, as the class that it was saved from."""

    config_class = InnerConfig

    @classmethod
    def from_pretrained(cls, path: Any, *args: Any, config: Any, **kwargs: Any) -> Any:
        """The model with its adapters, and with the set-up that was active.

        Args:
            path: Folder or hub repository.
            args, kwargs: Arguments of `from_pretrained` of its class.
            config: What lies there as config.json.
        Raises:
            CheckpointError: its class is not known here.
            CheckpointNotFound: only what trained lies there, and its base model is not to be found.
        """
        folder = _folder_of_what_trained(path, kwargs)
        if folder is None:
            model = load_model(path, _class_of(config, path), None, *args, config=config.own(), **kwargs)
            model.set_active_adapters(_setup(config))
        elif (trained := _being_trained(config)) is not None:
            model = _copy(trained)
            load_folders(model, folder)
        else:
            model = _on_its_base(folder, config, {key: value for key, value in kwargs.items() if key not in HUB})
        return model


def _setup(config: Any) -> Any:
    stored = getattr(config, ACTIVE)
    return None if stored is None else AdapterCompositionBlock.from_dict(stored)


def _class_of(config: Any, path: Any) -> Any:
    name = str((config.architectures or [None])[0])
    found = getattr(transformers, name, None) or getattr(auto, name, None)
    if found is None:
        raise CheckpointError(
            f"The model in {path} is of the class {name}, which transformers has not. Open it by its own class: "
            "adapters.load_model(path, model_class)."
        )
    return found


def _folder_of_what_trained(path: Any, kwargs: dict[str, Any]) -> Path | None:
    """Where the files lie, if they are those of `trainers.save_trained`; None if they are those of a whole model."""
    below = kwargs.get("subfolder") or ""
    if os.path.isdir(path):
        folder = Path(path, below)
        return folder if holds_what_trained(folder) else None
    hub = {key: kwargs[key] for key in HUB if key in kwargs}
    file = cached_file(path, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if file is None or not holds_what_trained(Path(file).parent):
        return None
    options = {key: kwargs[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in kwargs}
    return Path(snapshot_download(str(path), **options), below)


def _being_trained(config: Any) -> Any:
    """The model for which a Trainer is opening a checkpoint, to take its values from; None if none is."""
    loading, place = loading_trainer(), getattr(config, PLACE)
    if loading is None or place is None:
        return None
    part = dict(loading[0].model.named_modules()).get(place)
    return part if isinstance(part, AdapterModelMixin) else None


def _copy(model: Any) -> Any:
    """A copy that shares all tensors that do not train."""
    ours = added_tensors(model._engine)
    tensors = chain(model.parameters(), model.buffers())
    shared = {id(tensor): tensor for tensor in tensors if not tensor.requires_grad and id(tensor) not in ours}
    return copy.deepcopy(model, shared)


def _on_its_base(folder: Path, config: Any, options: dict[str, Any]) -> Any:
    source, own = getattr(config, BASE), config.own()
    register = vars(own).pop("adapters")
    try:
        plain = _class_of(config, folder).from_pretrained(source, config=copy.deepcopy(own), **options)
    except (OSError, TypeError) as error:
        raise CheckpointNotFound(
            f"{folder} holds adapters only, and their base model {source!r} is not to be found ({error}). Open the "
            "base model, call adapters.init on it, and load each adapter from its folder by load_adapter."
        ) from None
    model = init(plain)
    add_trained(model, register, folder, _setup(config))
    return model


def register() -> None:
    """Let the Auto classes of transformers open such models."""
    AutoConfig.register(MODEL_TYPE, InnerConfig, exist_ok=True)
    for kind in vars(modeling_auto).values():
        if isinstance(kind, type) and issubclass(kind, _BaseAutoModelClass) and kind._model_mapping is not None:
            kind.register(InnerConfig, InnerModel, exist_ok=True)


register()
