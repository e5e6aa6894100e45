"""Which adapters are there? Adding and removing adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from adapters.methods.config import AdapterConfig
from adapters.methods.presets import DEFAULT_ADAPTER_CONFIG
from adapters.methods.presets import load as load_config
from adapters.runtime import merging
from adapters.verbs.activation import ActivationVerbs
from adapters.verbs.peft import refuse_peft_config


class LifecycleVerbs(ActivationVerbs):
    """Adding and removing adapters."""

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
        """Remove an adapter, or several, and what blocks own with them. Nothing if there is none of this name."""
        for name in [adapter_name] if isinstance(adapter_name, str) else adapter_name:
            if name in self.adapters_config:
                merging.unmerge(self._engine, name)
                self._engine.delete(name)
