"""How is a whole composition saved and loaded? One file for the block, and a sub-folder for all that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.checkpoint.atomic import reading
from adapters.checkpoint.heads import has_flexible_heads, static_head
from adapters.checkpoint.layout import SETUP_FILE, VERSION, PathLike, read_json, subfolder, with_meta, write_json
from adapters.checkpoint.together import saving_of
from adapters.checkpoint.undo import Before
from adapters.composition.blocks import AdapterCompositionBlock
from adapters.errors import CheckpointError, CompositionError, HeadError
from adapters.heads.output_embeddings import head_names
from adapters.runtime.engine import Engine


def save_setup(
    model: Any,
    folder: PathLike,
    setup: Any,
    head_setup: Any = None,
    meta: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> None:
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
    heads = [] if head_setup is True else head_names(head_setup)
    known = getattr(model, "heads", {})
    if missing := [name for name in heads if name not in known]:
        raise HeadError(f"There is no head {missing[0]!r} to save with the set-up.")
    data = {
        "adapter_setup": _to_dict(setup if isinstance(setup, str) else block),
        "head_setup": head_setup.to_dict() if isinstance(head_setup, AdapterCompositionBlock) else head_setup,
        "version": VERSION,
    }
    with saving_of(model, folder) as path:
        for name in sorted(block.flatten()):
            model.save_adapter(subfolder(path, name), name, with_head=False, **kwargs)
        for owned in engine.owned.values():
            for name in owned.names_in(block):
                save = getattr(model, f"save_{owned.kind.stem}")
                save(subfolder(path, name), name, with_head=False, **kwargs)
        kwargs.pop("custom_weights_loaders", None)
        for name in heads:
            model.save_head(subfolder(path, name), name, **kwargs)
        if head_setup is True:
            model.save_head(path, **kwargs)
        write_json(path / SETUP_FILE, with_meta(data, meta), sort_keys=False)


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
    with reading(folder), Before(model) as before:
        setup, head_setup = _stored(folder)
        names = sorted(setup.flatten()) if isinstance(setup, AdapterCompositionBlock) else [setup]
        before.keep(_tensors(model, names, setup, head_setup is True))
        for name in names:
            model.load_adapter(str(subfolder(folder, name)), load_as=name, with_head=False, **kwargs)
        for owned in model._engine.owned.values():
            for name in sorted({str(block.owned_name) for block in owned.blocks_in(setup)}):
                load = getattr(model, f"load_{owned.kind.stem}")
                load(str(subfolder(folder, name)), load_as=name, with_head=False, **kwargs)
        kwargs.pop("custom_weights_loaders", None)
        for name in [] if head_setup is True else head_names(head_setup):
            model.load_head(str(subfolder(folder, name)), load_as=name, set_active=False, **kwargs)
        if head_setup is True:
            model.load_head(str(folder), set_active=False, **kwargs)
        if set_active:
            model.set_active_adapters(setup)
            if head_setup is not None and head_setup is not True:
                model.active_head = head_setup
    return setup, head_setup


def _stored(folder: Path) -> tuple[Any, Any]:
    """The composition of a folder, and its heads: a name, a list or block of names, True, or None."""
    file = folder / SETUP_FILE
    saved = read_json(file)
    if not isinstance(saved.get("adapter_setup"), Mapping):
        raise CheckpointError(f"{file} has no entry 'adapter_setup'.")
    setup = AdapterCompositionBlock.from_dict(saved["adapter_setup"])
    if setup is None:
        raise CheckpointError(f"{file} names no adapter.")
    heads = saved.get("head_setup")
    if isinstance(heads, Mapping):
        return setup, AdapterCompositionBlock.from_dict(heads)
    names = heads if isinstance(heads, list) else [heads]
    if not (heads is None or heads is True or all(isinstance(name, str) for name in names)):
        raise CheckpointError(
            f"{file} has head_setup {heads!r}. Allowed: null, true, a name, a list of names, a block."
        )
    return setup, heads


def _tensors(model: Any, names: list[str], setup: Any, with_head: bool) -> Iterator[Tensor]:
    """The tensors of a model that are written into where it has these adapters already, and what the blocks own."""
    engine: Engine = model._engine
    groups: list[Any] = [engine.parts.get(name, []) for name in names]
    for owned in engine.owned.values():
        groups += [owned.get(str(block.owned_name), []) for block in owned.blocks_in(setup)]
    for parts in groups:
        for part in parts:
            yield from part.module.state_dict(keep_vars=True).values()
    if with_head and not has_flexible_heads(model):
        yield from static_head(model).values()
