"""What lies in one folder with an adapter or a fusion? The head of its name, and what the caller's own objects write.

Such an object, one of the `custom_weights_loaders` of the verbs, has `save(folder, name)` and
`load(folder, load_as=name, loading_info=...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.checkpoint import adapters, fusion, heads
from adapters.checkpoint.atomic import reading, saving
from adapters.checkpoint.layout import PathLike
from adapters.checkpoint.undo import Before
from adapters.composition.blocks import Fuse


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
    use_safetensors: bool = True,
    with_head: bool = True,
) -> None:
    """Save an adapter, and the head of its name if there is one.

    Raises:
        AdapterNameError: there is no adapter of this name.
    """
    model._engine.require(name)
    with saving(folder) as path:
        adapters.write_adapter(model, path, name, meta, use_safetensors)
        if with_head and heads.has_head(model, name):
            heads.write_head(model, path, name, meta, use_safetensors)
        for loader in loaders or ():
            loader.save(str(path), name)


def save_fusion(
    model: Any,
    folder: PathLike,
    name: str,
    meta: Mapping[str, Any] | None = None,
    loaders: Sequence[Any] | None = None,
    use_safetensors: bool = True,
    with_head: bool | str = False,
) -> None:
    """Save a fusion, and a head: the one called `with_head`, or if this is True the one of the fusion's name.

    Raises:
        AdapterNameError: there is no fusion of this name.
        HeadError: there is no head called `with_head`.
    """
    model._engine.require_fusion(name)
    with saving(folder) as path:
        fusion.write_fusion(model, path, name, meta, use_safetensors)
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
) -> str:
    """Load the adapter of a folder, and the head beside it.

    Returns:
        Its name in the model.
    Raises:
        CheckpointError: something in the folder does not fit. The model is as it was.
    """

    def load(before: Before) -> str:
        given = (options.use_safetensors, options.strict, options.loading_info)
        return adapters.load_adapter(model, folder, before, options.load_as, leave_out, *given)

    head = {"id2label": id2label, "num_labels": num_labels} if with_head else None
    return _load(model, folder, options, load, head, lambda name: name)


def load_fusion(model: Any, folder: Path, options: Loading, with_head: bool = True) -> str:
    """Load the fusion of a folder, and the head beside it; its adapters must be there.

    Returns:
        Its name in the model.
    Raises:
        CheckpointError: something in the folder does not fit. The model is as it was.
    """

    def load(before: Before) -> str:
        given = (options.use_safetensors, options.strict, options.loading_info)
        return fusion.load_fusion(model, folder, before, options.load_as, *given)

    def setup(name: str) -> Fuse:
        _, names = model.adapters_config.get_fusion(name)
        return Fuse(*(names or ()), name=name)

    return _load(model, folder, options, load, {} if with_head else None, setup)


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
