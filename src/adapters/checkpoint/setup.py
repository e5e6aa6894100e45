"""How is a whole composition saved and loaded? One file for the block, and a sub-folder for all that it names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapters.checkpoint.layout import (
    SETUP_FILE,
    VERSION,
    make_folder,
    read_json,
    subfolder,
    with_meta,
    write_json,
)
from adapters.composition.blocks import AdapterCompositionBlock, Fuse
from adapters.errors import CheckpointError, CompositionError, HeadError
from adapters.heads.output_embeddings import head_names
from adapters.runtime.engine import Engine


def fuse_blocks(block: Any) -> Iterator[Fuse]:
    """All Fuse blocks in a block, at any depth."""
    if isinstance(block, Fuse):
        yield block
    if isinstance(block, AdapterCompositionBlock):
        for child in block:
            yield from fuse_blocks(child)


def save_setup(
    model: Any,
    folder: str | os.PathLike[str],
    setup: Any,
    head_setup: Any = None,
    meta: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Path:
    """Write a composition, and its adapters, fusions and heads.

    Args:
        model: The model.
        folder: Where to; it is made.
        setup: A block or a name.
        head_setup: Heads to save with it: a name, a list or block of names, True for the head of a plain class.
        meta: More entries for the file.
        kwargs: As for the verbs that save adapters, fusions and heads.
    Raises:
        AdapterNameError, HeadError: something in it does not exist.
        CompositionError: it is None, or its blocks do not nest.
    """
    engine: Engine = model._engine
    block = engine.parse(setup)
    if block is None:
        raise CompositionError("There is no set-up to save. Pass a block or the name of an adapter.")
    fusions = sorted({fuse.name for fuse in fuse_blocks(block)})
    if fusions:
        engine.fusions_of(block)
    heads = [] if head_setup is True else head_names(head_setup)
    known = getattr(model, "heads", {})
    if missing := [name for name in heads if name not in known]:
        raise HeadError(f"There is no head {missing[0]!r} to save with the set-up.")
    path = make_folder(folder)
    for name in sorted(block.flatten()):
        model.save_adapter(subfolder(path, name), name, with_head=False, **kwargs)
    for name in fusions:
        model.save_adapter_fusion(subfolder(path, name), name, with_head=False, **kwargs)
    kwargs.pop("custom_weights_loaders", None)
    for name in heads:
        model.save_head(subfolder(path, name), name, **kwargs)
    if head_setup is True:
        model.save_head(path, **kwargs)
    data = {
        "adapter_setup": _to_dict(setup if isinstance(setup, str) else block),
        "head_setup": head_setup.to_dict() if isinstance(head_setup, AdapterCompositionBlock) else head_setup,
        "version": VERSION,
    }
    write_json(path / SETUP_FILE, with_meta(data, meta), sort_keys=False)
    return path


def _to_dict(setup: Any) -> dict[str, Any]:
    if isinstance(setup, AdapterCompositionBlock):
        return setup.to_dict()
    return {"type": "single", "children": [setup]}


def load_setup(model: Any, folder: Path, set_active: bool = False, **kwargs: Any) -> tuple[Any, Any]:
    """Add all that a stored composition names.

    Returns:
        The composition and the heads that go with it.
    Raises:
        CheckpointError: a part of it does not fit; the adapters, fusions and heads that it added are removed again.
    """
    engine: Engine = model._engine
    saved = read_json(folder / SETUP_FILE)
    if not isinstance(saved.get("adapter_setup"), Mapping):
        raise CheckpointError(f"{folder / SETUP_FILE} has no entry 'adapter_setup'.")
    setup = AdapterCompositionBlock.from_dict(saved["adapter_setup"])
    heads = saved.get("head_setup")
    head_setup = AdapterCompositionBlock.from_dict(heads) if isinstance(heads, Mapping) else heads
    names = sorted(setup.flatten()) if isinstance(setup, AdapterCompositionBlock) else [setup]
    fusions = sorted({fuse.name for fuse in fuse_blocks(setup)})
    new_heads = [] if head_setup is True else head_names(head_setup)
    before = set(engine.parts), set(engine.fusions), set(getattr(model, "heads", ()))
    try:
        for name in names:
            model.load_adapter(str(subfolder(folder, name)), load_as=name, with_head=False, **kwargs)
        for name in fusions:
            model.load_adapter_fusion(str(subfolder(folder, name)), load_as=name, with_head=False, **kwargs)
        kwargs.pop("custom_weights_loaders", None)
        for name in new_heads:
            model.load_head(str(subfolder(folder, name)), load_as=name, set_active=False, **kwargs)
        if head_setup is True:
            model.load_head(str(folder), set_active=False, **kwargs)
        if set_active:
            model.set_active_adapters(setup)
            if head_setup is not None and head_setup is not True:
                model.active_head = head_setup
    except BaseException:
        _remove_new(model, before)
        raise
    return setup, head_setup


def _remove_new(model: Any, before: tuple[set[str], set[str], set[str]]) -> None:
    engine: Engine = model._engine
    for fusion in set(engine.fusions) - before[1]:
        engine.delete_fusion(fusion)
    for name in set(engine.parts) - before[0]:
        model.delete_adapter(name)
    for head in set(getattr(model, "heads", ())) - before[2]:
        model.delete_head(head)
