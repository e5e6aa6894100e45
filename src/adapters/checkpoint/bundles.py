"""What lies in one folder with an adapter, or what a block owns? The head of its name, what the caller's objects write.

Such an object, one of the `custom_weights_loaders` of the verbs, has `save(folder, name)` and
`load(folder, load_as=name, loading_info=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.checkpoint import adapters, heads, owned
from adapters.checkpoint.atomic import reading
from adapters.checkpoint.layout import ADAPTER, OWNED, Files, PathLike, read_json
from adapters.checkpoint.peft.loading import load_peft
from adapters.checkpoint.peft.saving import write_peft
from adapters.checkpoint.together import saving_of
from adapters.checkpoint.undo import Before
from adapters.errors import ConfigError, choices
from adapters.sharding import gathered

OURS, OF_PEFT = "adapters", "peft"
FORMATS = (OURS, OF_PEFT)
"""Formats in which an adapter can be saved."""


@dataclass(frozen=True)
class Loading:
    """How something is loaded. The verb `load_adapter` of the model says what the fields mean."""

    load_as: str | None = None
    set_active: bool = False
    use_safetensors: bool = True
    strict: bool = True
    loading_info: dict[str, Any] | None = None
    loaders: Sequence[Any] | None = None


def save_adapter(
    model: Any,
    folder: PathLike,
    name: str,
    meta: Mapping[str, Any] | None = None,
    loaders: Sequence[Any] | None = None,
    use_safetensors: Files = True,
    with_head: bool = True,
    form: str = OURS,
) -> None:
    """Save an adapter, and the head of its name if there is one, in one of the `FORMATS`.

    Raises:
        AdapterNameError: there is no adapter of this name.
        ConfigError: there is no such format.
        UnsupportedError: the format cannot hold the adapter.
    """
    model._engine.require(name)
    if form not in FORMATS:
        raise ConfigError(f"There is no format {form!r}. {choices(form, FORMATS)}")
    with saving_of(model, folder) as path:
        if form == OF_PEFT:
            with gathered(part.module for part in model._engine.parts[name]):
                write_peft(model, path, name, with_head, use_safetensors)
            return
        adapters.write_adapter(model, path, name, meta, use_safetensors)
        if with_head and heads.goes_with_adapter(model, name):
            heads.write_head(model, path, name, meta, use_safetensors)
        for loader in loaders or ():
            loader.save(str(path), name)


def save_owned(
    model: Any,
    noun: str,
    folder: PathLike,
    name: str,
    meta: Mapping[str, Any] | None = None,
    loaders: Sequence[Any] | None = None,
    use_safetensors: Files = True,
    with_head: bool | str = False,
) -> None:
    """Save what a block owns, and a head: the one called `with_head`, or if this is True the one of the same name.

    Raises:
        AdapterNameError: the model has none of this name.
        HeadError: there is no head called `with_head`.
    """
    model._engine.owned[noun].require(name)
    with saving_of(model, folder) as path:
        owned.write_owned(model, noun, path, name, meta, use_safetensors)
        head = with_head if isinstance(with_head, str) else name
        if with_head and (head is with_head or heads.has_head(model, head)):
            heads.write_head(model, path, head, meta, use_safetensors)
        for loader in loaders or ():
            loader.save(str(path), name)


def load_adapter(
    model: Any,
    folder: Path,
    options: Loading,
    leave_out: Sequence[int] | None = None,
    with_head: bool = True,
    id2label: Mapping[int, str] | None = None,
    num_labels: int | None = None,
    given_name: str | None = None,
) -> str:
    """Load the adapter of a folder, and the head beside it; of PEFT what lies there, if its config says so.

    Args:
        given_name: What an adapter of PEFT is called without `load_as`: its files have no name.
    Returns:
        Its name in the model.
    Raises:
        CheckpointError: something in the folder does not fit. The model is as it was.
    """

    def load(before: Before) -> str:
        given = (options.use_safetensors, options.strict, options.loading_info)
        return adapters.load_adapter(model, folder, before, options.load_as, leave_out, *given)

    head = {"id2label": id2label, "num_labels": num_labels} if with_head else None
    if not _is_ours(folder):
        name = options.load_as or named(given_name or folder.name)

        def load(before: Before) -> str:
            given = (options.use_safetensors, with_head, options.strict, options.loading_info)
            return load_peft(model, folder, before, name, leave_out, *given)

        return _load(model, folder, options, load, None, lambda name: name)
    return _load(model, folder, options, load, head, lambda name: name)


def _is_ours(folder: Path) -> bool:
    """Whether the adapter in a folder is one in our format."""
    with reading(folder):
        saved = read_json(folder / ADAPTER.config)
        ours = any((folder / name).is_file() for name in ADAPTER.weights)
    return ours and "peft_type" not in saved


def named(place: str) -> str:
    """The name of an adapter whose files have none, by the place where it lies: the last part of its path."""
    last = place.rstrip("/").rpartition("/")[2] or "peft"
    return last.translate(str.maketrans(".,", "__"))


def load_owned(model: Any, noun: str, folder: Path, options: Loading, with_head: bool = True) -> str:
    """Load what a block owns from a folder, and the head beside it; its adapters must be there.

    Returns:
        Its name in the model.
    Raises:
        CheckpointError: something in the folder does not fit. The model is as it was.
    """

    def load(before: Before) -> str:
        given = (options.use_safetensors, options.strict, options.loading_info)
        return owned.load_owned(model, noun, folder, before, options.load_as, *given)

    head = {"own_name": read_json(folder / OWNED[noun].config).get("name")} if with_head else None
    return _load(model, folder, options, load, head, model._engine.owned[noun].block)


def _load(
    model: Any,
    folder: Path,
    options: Loading,
    load: Callable[[Before], str],
    head: Mapping[str, Any] | None,
    setup: Callable[[str], Any],
) -> str:
    """Load something by `load`, the head beside it unless `head` is None, what the loaders have, and activate it."""
    with Before(model) as before:
        with reading(folder):
            name = load(before)
            if head is not None:
                shared = {key: getattr(options, key) for key in ("use_safetensors", "set_active", "strict")}
                heads.load_head_beside(model, folder, before, name, **head, **shared)
        for loader in options.loaders or ():
            loader.load(str(folder), load_as=name, loading_info=options.loading_info)
        if options.set_active:
            model.set_active_adapters(setup(name))
    return name
