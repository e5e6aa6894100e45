"""Which adapters are there? Adding and removing adapters and fusions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from adapters.composition.blocks import Fuse, last_name
from adapters.methods.config import AdapterConfig
from adapters.methods.presets import DEFAULT_ADAPTER_CONFIG
from adapters.methods.presets import load as load_config
from adapters.runtime import merging
from adapters.verbs.activation import ActivationVerbs
from adapters.verbs.peft import refuse_peft_config


class LifecycleVerbs(ActivationVerbs):
    """Adding and removing adapters and fusions."""

    def add_adapter(
        self, adapter_name: str, config: Any = None, overwrite_ok: bool = False, set_active: bool = False
    ) -> None:
        """Add an untrained adapter.

        Args:
            adapter_name: Its name, without '.' and ','.
            config: A config, its dict, a name such as 'lora', a string such as 'lora[r=4]' or a JSON file; default
                'seq_bn'.
            overwrite_ok: Replace an adapter of the same name.
            set_active: Activate it, instead of what is active now.
        Raises:
            AdapterNameError: the name is malformed or taken.
            ConfigError: the config is not valid, or selects no place in this model.
            UnsupportedError: this model cannot carry the method.
        """
        refuse_peft_config(adapter_name, config)
        found = cast(AdapterConfig, load_config(config if config is not None else DEFAULT_ADAPTER_CONFIG))
        if overwrite_ok and adapter_name in self.adapters_config:
            merging.unmerge(self._engine, adapter_name)
        self._engine.add(adapter_name, found, overwrite_ok, new=True)
        if set_active:
            self.set_active_adapters(adapter_name)

    def delete_adapter(self, adapter_name: str | Sequence[str]) -> None:
        """Remove an adapter, or several, and the fusions they take part in. Nothing if there is none of this name."""
        for name in [adapter_name] if isinstance(adapter_name, str) else adapter_name:
            if name in self.adapters_config:
                merging.unmerge(self._engine, name)
                self._engine.delete(name)

    def add_adapter_fusion(
        self,
        adapter_names: Fuse | Sequence[str] | str,
        config: Any = None,
        name: str | None = None,
        overwrite_ok: bool = False,
        set_active: bool = False,
    ) -> None:
        """Add AdapterFusion layers for some bottleneck adapters.

        Args:
            adapter_names: The fused adapters: a `Fuse` block, a list, or names joined by commas.
            config: 'dynamic' (default), 'static', an AdapterFusionConfig or its dict.
            name: Name of the fusion; by default the adapters' names joined by commas.
            overwrite_ok: Replace a fusion of the same name.
            set_active: Activate it.
        """
        names, key = fusion_names(adapter_names, name)
        self._engine.add_fusion(names, config, None if key == ",".join(names) else key, overwrite_ok)
        if set_active:
            self.set_active_adapters(adapter_names if isinstance(adapter_names, Fuse) else Fuse(*names, name=name))

    def delete_adapter_fusion(self, adapter_names: Fuse | Sequence[str] | str) -> None:
        """Remove a fusion. Does nothing if there is none of this name."""
        _, key = fusion_names(adapter_names, None)
        if key in self._engine.fusions:
            self._engine.delete_fusion(key)


def fusion_names(names: Fuse | Sequence[str] | str, own: str | None) -> tuple[list[str], str]:
    """The adapters of a fusion, and its name, from what users write."""
    if isinstance(names, Fuse):
        return [str(last_name(child)) for child in names], own or names.name
    listed = names.split(",") if isinstance(names, str) else list(names)
    return listed, own or ",".join(listed)
