"""How are prediction heads saved and loaded? Flexible ones by name, that of a plain class, and one as the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.checkpoint.atomic import reading
from adapters.checkpoint.fingerprint import ENTRY, sample, warn_if_other
from adapters.checkpoint.layout import HEAD, Files, description, read_json
from adapters.checkpoint.names import added_tensors, children_state, converted, match, renamed, same
from adapters.checkpoint.tensors import read_checkpoint, write_checkpoint
from adapters.checkpoint.undo import Before
from adapters.errors import CheckpointError, HeadError, UnsupportedError, choices
from adapters.heads.mixin import FlexibleHeadsMixin
from adapters.heads.options import wrong_option
from adapters.heads.registry import HEADS
from adapters.heads.static import convert_static_head, find_static_head
from adapters.heads.structure import ENCODER_DECODER
from adapters.runtime.empty import Empty
from adapters.runtime.engine import Engine
from adapters.sharding import class_of, present

logger = logging.getLogger(__name__)

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


def goes_with_adapter(model: Any, name: str) -> bool:
    """Whether files of the adapter `name` have a head.

    The output embedding of a plain class is part of the base model, and often larger than all of the adapter: it is no
    such head, unless it trains and the base model does not.
    """
    if has_flexible_heads(model) or (output := _output_embeddings(model)) is None:
        return has_head(model, name)
    head = {id(tensor): tensor for tensor in static_head(model).values()}
    if not head.keys() & {id(tensor) for tensor in output.parameters()}:
        return bool(head)
    added = added_tensors(model._engine)
    others = [p for p in model.parameters() if id(p) not in head and id(p) not in added]
    return any(tensor.requires_grad for tensor in head.values()) and not all(p.requires_grad for p in others)


def _output_embeddings(model: Any) -> nn.Module | None:
    found: nn.Module | None = model.get_output_embeddings()
    return found


def write_head(
    model: Any,
    folder: Path,
    name: str | None = None,
    meta: Mapping[str, Any] | None = None,
    use_safetensors: Files = True,
) -> None:
    """Write a head into an existing folder.

    Args:
        model: The model.
        folder: Where to.
        name: The flexible head; by default the active one. Not used for plain classes, which have one head.
        meta: More entries for the config file.
        use_safetensors: Write safetensors (True), a pickle file (False), or "both".
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
    data[ENTRY] = sample(model._engine)
    write_checkpoint(folder, HEAD, data, present(model, tensors), meta, use_safetensors)


def load_head(
    model: Any,
    folder: Path,
    before: Before,
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
        before: Brings the model back if this fails.
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
    with reading(folder):
        saved, found = read_checkpoint(folder, HEAD, use_safetensors)
    what = f"The head of {saved.get('model_class')} in {folder}"
    labels = _swapped(saved.get("label2id"), what)
    name: str | None = None
    if not has_flexible_heads(model):
        _check_class(model, saved, what)
        own = static_head(model)
        result = match(own, found, lambda key: _belongs_to_base(model, key))
        result.check(what, strict, loading_info=loading_info)
        for key, values in present(model, own).items():
            if values is not own[key] and key in result.pairs and torch.equal(values, result.pairs[key][1].to(values)):
                del result.pairs[key]  # offloaded, and so already
        before.keep(target for target, _ in result.pairs.values())
        result.copy()
        _set_labels(model, id2label or labels)
    else:
        if saved.get("config") is None:
            stored_name, config, found = _made_flexible(model, saved, found, load_as, id2label, num_labels, what)
        else:
            _check_class(model, saved, what)
            stored_name, config = _flexible(saved, load_as, id2label, what)
        name = load_as or stored_name
        check_head_config(config, what)
        start = f"heads.{stored_name}."
        own = renamed({k: t for k, t in found.items() if _is_of(k, stored_name)}, lambda key: key.removeprefix(start))
        _check_sizes(config, own, what)
        add_flexible(model, name, config, own, what, strict, loading_info)
        if set_active:
            model.active_head = name
    warn_if_other(model._engine, saved, what)
    return name


def _made_flexible(
    model: Any,
    saved: Mapping[str, Any],
    found: Mapping[str, Tensor],
    name: str | None,
    id2label: Mapping[int, str] | None,
    num_labels: int | None,
    what: str,
) -> tuple[str, Mapping[str, Any], dict[str, Tensor]]:
    """Name, config and tensors of the flexible head that becomes of the head of a plain class."""
    if name is None:
        raise HeadError(f"{what} has no name. Pass load_as to name the flexible head that it becomes.")
    count = num_labels or saved.get("num_labels")
    check_head_config({"num_labels": count} if count is not None else {}, what)
    options: dict[str, Any] = {"id2label": id2label, "label2id": saved.get("label2id"), "num_labels": count}
    config, tensors = convert_static_head(str(saved.get("model_class")), found, model.config, name, **options)
    return name, config, tensors


def _flexible(
    saved: Mapping[str, Any], load_as: str | None, id2label: Mapping[int, str] | None, what: str
) -> tuple[str, dict[str, Any]]:
    """Name and config of a flexible head in a file."""
    name, config = saved.get("name") or load_as, saved["config"]
    if not isinstance(name, str):
        raise CheckpointError(f"{what} has the name {name!r}. Pass load_as.")
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{what} has config {config!r}. A dict is needed.")
    labels = {} if id2label is None else {"label2id": {label: int(index) for index, label in id2label.items()}}
    return name, {**config, **labels}


def add_flexible(
    model: Any,
    name: str,
    config: Mapping[str, Any],
    own: Mapping[str, Tensor],
    what: str,
    strict: bool,
    loading_info: dict[str, Any] | None,
) -> None:
    """Add a head with stored values. Built-in heads are built without values, and filled when all has been checked."""

    def built(empty: bool) -> Any:
        with Empty() if empty else torch.random.fork_rng(devices=[]):
            model.add_prediction_head_from_config(name, config, overwrite_ok=True, set_active=False)
        return model._get_head(name)

    head = built(empty=config.get("head_type") in HEADS)
    result = match(head.state_dict(keep_vars=True), own, lambda key: False)
    result.check(what, strict, loading_info=loading_info)
    state = {key: converted(key, t, target.dtype, model.device) for key, (target, t) in result.pairs.items()}
    if result.missing:
        head = built(empty=False)
    if getattr(head, "tied", False):
        key, embeddings = f"{len(head) - 1}.weight", head.get_output_embeddings().weight
        if key in state and same(state[key], embeddings):
            del state[key]
        elif key in state:
            head.untie()
            model._heads_changed()
    head.load_state_dict(state, strict=False, assign=True)


def check_head_config(config: Mapping[str, Any], what: str) -> None:
    """Raise CheckpointError if a stored head config has a value that no head can have."""
    if wrong := wrong_option(config):
        raise CheckpointError(f"{what} has a config in which {wrong}")
    _swapped(config.get("label2id"), what)


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
    own, source, flexible = class_of(model).__name__, str(saved.get("model_class")), saved.get("config") is not None
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


def _check_sizes(config: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise CheckpointError if a stored head config asks for more than its tensors can hold, before it is built."""
    widest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    limits = {"layers": len(tensors), "num_labels": widest, "vocab_size": widest, "embedding_size": widest}
    for name, limit in limits.items():
        if (config.get(name) or 0) > max(limit, 1):
            raise CheckpointError(f"{what} has {name} {config[name]} in its config, but tensors for at most {limit}.")


def _swapped(label2id: Any, what: str) -> dict[int, str] | None:
    """Id -> label, of a stored mapping of labels to ids. Raises CheckpointError if it is none."""
    if label2id is None:
        return None
    try:
        return {int(index): str(label) for label, index in label2id.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise CheckpointError(f"{what} has label2id {label2id!r}. Allowed: an id, a whole number, per label.") from None


def _set_labels(model: Any, id2label: Mapping[int, str] | None) -> None:
    if id2label:
        model.config.id2label = {int(index): label for index, label in id2label.items()}
        model.config.label2id = {label: int(index) for index, label in id2label.items()}


def load_head_beside(
    model: Any, folder: Path, before: Before, name: str, own_name: str | None = None, **kwargs: Any
) -> str | None:
    """Load the head that lies beside an adapter, if this model can have it; otherwise say so in the log.

    Args:
        model: The model.
        folder: Where the adapter lies.
        before: Brings the model back if this fails.
        name: Of the adapter, and of the head.
        own_name: Of what lies there, if its head may have another name, which it keeps then.
        kwargs: As for `load_head`.
    """
    if missing := [part for part in (HEAD.config, HEAD.weights) if not _is_there(folder, part)]:
        if len(missing) == 2:
            return None
        absent = missing[0] if isinstance(missing[0], str) else " or ".join(missing[0])
        raise CheckpointError(
            f"{folder} holds half of a prediction head: there is no {absent}. Save the head again, or load without it "
            "(with_head=False)."
        )
    saved = read_json(folder / HEAD.config)
    if own_name is not None and saved.get("name") not in (None, own_name):
        name = saved["name"]
    try:
        if has_flexible_heads(model) and saved.get("config") is None:
            find_static_head(str(saved.get("model_class")), model.config)
        elif not has_flexible_heads(model) and not static_head(model):
            return None
        else:
            _check_class(model, saved, f"The head in {folder}")
    except (HeadError, UnsupportedError) as error:
        logger.warning("Adapter %r is loaded without its prediction head. %s", name, error)
        return None
    return load_head(model, folder, before, load_as=name if has_flexible_heads(model) else None, **kwargs)


def _is_there(folder: Path, names: str | tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in ((names,) if isinstance(names, str) else names))
