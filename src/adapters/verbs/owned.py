"""What do the verbs of all blocks that own weights have in common? Everything but names and words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapters.checkpoint import bundles
from adapters.checkpoint.layout import OWNED, PathLike, subfolder
from adapters.checkpoint.together import saving_of
from adapters.checkpoint.undo import Before
from adapters.composition.blocks import last_name
from adapters.composition.owned import BlockModule
from adapters.hub.locate import locate
from adapters.runtime import freezing
from adapters.runtime.adapters_config import joined_names
from adapters.verbs.training import TrainingVerbs


class OwnedVerbs(TrainingVerbs):
    """The life of what blocks own, from adding to deleting; `noun` is that of its kind."""

    def _add_owned(
        self, noun: str, adapters: Any, config: Any, name: str | None, overwrite_ok: bool, set_active: bool
    ) -> None:
        owned = self._engine.owned[noun]
        names, key = named(owned.kind, adapters, name)
        block = adapters if isinstance(adapters, owned.kind.block) else None
        found = owned.kind.load_config(config, block)
        stored = config if found == owned.kind.load_config(config) else found
        with Before(self):
            owned.add(names, stored, None if key == joined_names(names) else key, overwrite_ok)
            if set_active:
                own = block is not None and block.owned_name == key
                self.set_active_adapters(block if own else owned.kind.block_of(names, found, key))

    def _delete_owned(self, noun: str, adapters: Any) -> None:
        owned = self._engine.owned[noun]
        _, key = named(owned.kind, adapters, None)
        if key in owned:
            owned.delete(key)

    def _train_owned(self, noun: str, adapter_setup: Any, unfreeze_adapters: bool) -> None:
        block = self._engine.parse(adapter_setup)
        owned = self._engine.owned[noun]
        names = owned.some_in(block)
        adapters = block.flatten() if unfreeze_adapters and block is not None else set()
        self._take_out_merged(adapters)
        self._train_mode()
        freezing.train_owned(self._engine, owned, names, adapters)
        self._train_embeddings(False)
        self.model_frozen = True
        self.set_active_adapters(adapter_setup)

    def _owned_to(self, noun: str, adapters: Any, device: Any, dtype: Any) -> None:
        owned = self._engine.owned[noun]
        _, key = named(owned.kind, adapters, None)
        owned.require(key)
        for part in owned[key]:
            part.module.to(device=device, dtype=dtype)

    def _save_owned(self, noun: str, save_directory: PathLike, adapters: Any, *options: Any) -> None:
        _, name = named(self._engine.owned[noun].kind, adapters, None)
        bundles.save_owned(self, noun, save_directory, name, *options)

    def _load_owned(
        self, noun: str, name_or_path: PathLike, options: bundles.Loading, with_head: bool, kwargs: Mapping[str, Any]
    ) -> str:
        folder = locate(name_or_path, OWNED[noun], use_safetensors=options.use_safetensors, **kwargs)
        return bundles.load_owned(self, noun, folder, options, with_head)

    def _save_all_owned(self, noun: str, save_directory: PathLike, *options: Any) -> None:
        with saving_of(self, save_directory) as folder:
            for name in self._engine.owned[noun]:
                bundles.save_owned(self, noun, subfolder(folder, name), name, *options)


def named(kind: type[BlockModule], adapters: Any, own: str | None) -> tuple[list[Any], str]:
    """The adapters that a block combines, and the name of what it owns, from a block, a list, or joined names."""
    if isinstance(adapters, kind.block):
        return [last_name(child) for child in adapters], own or str(adapters.owned_name)
    listed = adapters.split(",") if isinstance(adapters, str) else list(adapters)
    return listed, own or joined_names(listed)
