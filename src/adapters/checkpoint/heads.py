"""How are prediction heads saved and loaded? Flexible ones by name, that of a plain class, and one as the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.checkpoint.layout import HEAD, description, make_folder, read_json, with_meta, write_json
from adapters.checkpoint.names import Match, added_tensors, children_state, match
from adapters.checkpoint.tensors import read_tensors, write_tensors
from adapters.errors import CheckpointError, HeadError, UnsupportedError, choices
from adapters.heads.mixin import FlexibleHeadsMixin
from adapters.heads.static import convert_static_head, find_static_head
from adapters.runtime.engine import Engine

logger = logging.getLogger(__name__)

ENCODER_DECODER = ("encoder", "decoder", "shared")
"""Children of classes like T5ForConditionalGeneration that are the base model; the others are the head."""
OLD_SUFFIX, SUFFIX = "ModelWithHeads", "AdapterModel"
"""Ends of names of classes with flexible heads, formerly and now."""


def has_flexible_heads(model: Any) -> bool:
    """Whether heads can be added to a model."""
    return isinstance(model, FlexibleHeadsMixin)


def static_head(model: Any) -> dict[str, Tensor]:
    """Name -> tensor of the head that a plain class has; empty for base models."""
    engine: Engine = model._engine
    children = [name for name, _ in model.named_children()]
    if engine.base is not model:
        base = next(name for name, child in model.named_children() if child is engine.base)
        children.remove(base)
    elif set(ENCODER_DECODER) <= set(children):
        children = [name for name in children if name not in ENCODER_DECODER]
    else:
        return {}
    state = children_state(model, children)
    if children:
        state |= dict(model.named_parameters(recurse=False))
        state |= {n: t for n, t in model.named_buffers(recurse=False) if n not in model._non_persistent_buffers_set}
    added = added_tensors(engine)
    return {name: tensor for name, tensor in state.items() if id(tensor) not in added}


def has_head(model: Any, name: str | None = None) -> bool:
    """Whether there is a flexible head `name`, or whether a plain class has a head."""
    return name in model.heads if has_flexible_heads(model) else bool(static_head(model))


def save_head(
    model: Any,
    folder: Any,
    name: str | None = None,
    meta: Mapping[str, Any] | None = None,
    use_safetensors: bool = True,
) -> Path:
    """Write a head.

    Args:
        model: The model.
        folder: Where to; it is made.
        name: The flexible head; by default the active one. Not used for plain classes, which have one head.
        meta: More entries for the config file.
        use_safetensors: Write safetensors, or else a pickle file.
    Raises:
        HeadError: there is no such head, or several are active.
    """
    if has_flexible_heads(model):
        name = model.active_head if name is None else name
        if not isinstance(name, str):
            raise HeadError(f"Which head to save? Active is {name!r}. {choices(name, model.heads)}")
        head = model._get_head(name)
        data = description(model, name, dict(head.config))
        tensors = {f"heads.{name}.{k}": t for k, t in head.state_dict(keep_vars=True).items()}
    else:
        tensors = static_head(model)
        if not tensors:
            raise HeadError(f"{type(model).__name__} has no prediction head to save.")
        data = description(model, None, None)
        labels = {label: int(index) for index, label in (model.config.id2label or {}).items()}
        data |= {"label2id": labels, "num_labels": model.config.num_labels}
    path = make_folder(folder)
    write_tensors(path, HEAD, tensors, use_safetensors)
    write_json(path / HEAD.config, with_meta(data, meta))
    return path


def load_head(
    model: Any,
    folder: Path,
    load_as: str | None = None,
    id2label: Mapping[int, str] | None = None,
    num_labels: int | None = None,
    use_safetensors: bool = True,
    set_active: bool = True,
    strict: bool = True,
    loading_info: dict[str, Any] | None = None,
) -> str | None:
    """Add the head that lies in a folder, or give its weights to the head of a plain class.

    Args:
        model: The model.
        folder: Where the head lies.
        load_as: Name in the model; by default as it was saved. Needed for the head of a plain class.
        id2label: Names of the labels, instead of the stored ones.
        num_labels: Labels, a count, of a plain class's head that becomes a flexible one; by default as stored.
        use_safetensors: Which file to take if both lie there.
        set_active: Activate the head.
        strict: Whether missing and unexpected tensors are errors.
        loading_info: Receives missing_keys and unexpected_keys.
    Returns:
        The head's name; None for that of a plain class.
    Raises:
        HeadError: the head is of another class.
        CheckpointError: tensors are missing, unexpected or of another shape; nothing has changed then.
    """
    saved = read_json(folder / HEAD.config)
    found = read_tensors(folder, HEAD, use_safetensors)
    source = str(saved.get("model_class"))
    what = f"The head of {source} in {folder}"
    if not has_flexible_heads(model):
        _check_class(model, saved, what)
        result = match(static_head(model), found, lambda key: _belongs_to_base(model, key))
        _finish(result, what, strict, loading_info)
        _set_labels(model, id2label or _swapped(saved.get("label2id")))
        return None
    config = saved.get("config")
    if config is None:
        if load_as is None:
            raise HeadError(f"{what} has no name. Pass load_as to name the flexible head that it becomes.")
        config, found = convert_static_head(
            source,
            found,
            model.config,
            load_as,
            id2label=id2label,
            label2id=saved.get("label2id"),
            num_labels=num_labels or saved.get("num_labels"),
        )
        name = stored_name = load_as
    else:
        _check_class(model, saved, what)
        stored_name = str(saved.get("name"))
        name = load_as or stored_name
        if not isinstance(config, Mapping):
            raise CheckpointError(f"{what} has config {config!r}. A dict is needed.")
        config = dict(config)
        if id2label is not None:
            config["label2id"] = {label: int(index) for index, label in id2label.items()}
    own = {k.removeprefix(f"heads.{stored_name}."): t for k, t in found.items() if _is_of(k, stored_name)}
    with _Undo(model, name):
        with torch.random.fork_rng(devices=[]):
            model.add_prediction_head_from_config(name, config, overwrite_ok=True, set_active=False)
        expected = model._get_head(name).state_dict(keep_vars=True)
        _finish(match(expected, own, lambda key: False), what, strict, loading_info)
    if set_active:
        model.active_head = name
    return name


class _Undo:
    """Puts the head `name`, the active heads and the labels back if what is done meanwhile fails."""

    def __init__(self, model: Any, name: str) -> None:
        self.model, self.name = model, name
        self.before = model._modules["heads"]._modules.get(name)
        self.active = model._active_head
        self.labels = model.config.id2label, model.config.label2id

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, *args: Any) -> None:
        if kind is None:
            return
        self.model.delete_head(self.name)
        if self.before is not None:
            self.model.add_prediction_head(self.before, overwrite_ok=True, set_active=False)
        self.model._active_head = self.active
        self.model.config.id2label, self.model.config.label2id = self.labels


def _finish(result: Match, what: str, strict: bool, loading_info: dict[str, Any] | None) -> None:
    if loading_info is not None:
        loading_info["missing_keys"] = list(result.missing)
        loading_info["unexpected_keys"] = list(result.unexpected)
    result.check(what, strict)
    result.copy()


def _is_of(key: str, name: str) -> bool:
    """Whether a tensor is the head's; files may hold heads whose names start the same, and the base model."""
    return key.startswith(f"heads.{name}.") or not key.startswith("heads.")


def _belongs_to_base(model: Any, key: str) -> bool:
    engine: Engine = model._engine
    prefixes = {model.base_model_prefix, engine.base.base_model_prefix, "transformer"}
    if "t5" in str(model.config.model_type):
        prefixes |= set(ENCODER_DECODER)
    return key.partition(".")[0] in prefixes


def _check_class(model: Any, saved: Mapping[str, Any], what: str) -> None:
    own, source, flexible = type(model).__name__, str(saved.get("model_class")), saved.get("config") is not None
    if flexible and has_flexible_heads(model):
        stem = source.removesuffix(OLD_SUFFIX)
        if stem == source or f"{stem}{SUFFIX}" == own:
            return
        raise HeadError(f"{what} does not suit {own}. Open the model as {stem}{SUFFIX} to load it.")
    if flexible:
        raise HeadError(
            f"{what} is a flexible head, but {own} has a head of its own. Open the model with AutoAdapterModel, or "
            "load without head (with_head=False)."
        )
    if source != own:
        raise HeadError(f"{what} does not suit {own}. Open the model as {source}, or load without head.")


def _swapped(label2id: Mapping[str, Any] | None) -> dict[int, str] | None:
    return None if label2id is None else {int(index): label for label, index in label2id.items()}


def _set_labels(model: Any, id2label: Mapping[int, str] | None) -> None:
    if id2label:
        model.config.id2label = {int(index): label for index, label in id2label.items()}
        model.config.label2id = {label: int(index) for index, label in id2label.items()}


def load_head_beside(model: Any, folder: Path, name: str, **kwargs: Any) -> str | None:
    """Load the head that lies beside an adapter, if this model can have it; otherwise say so in the log.

    Args:
        model: The model.
        folder: Where the adapter lies.
        name: Of the adapter, and of the head.
        kwargs: As for `load_head`.
    """
    saved = read_json(folder / HEAD.config)
    try:
        if has_flexible_heads(model) and saved.get("config") is None:
            find_static_head(str(saved.get("model_class")))
        elif not has_flexible_heads(model) and not static_head(model):
            return None
        else:
            _check_class(model, saved, f"The head in {folder}")
    except (HeadError, UnsupportedError) as error:
        logger.warning("Adapter %r is loaded without its prediction head. %s", name, error)
        return None
    return load_head(model, folder, load_as=name if has_flexible_heads(model) else None, **kwargs)
