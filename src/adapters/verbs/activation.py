"""Which adapters act? Setting and asking for what is active."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from adapters.composition.blocks import AdapterCompositionBlock
from adapters.methods.config import AdapterConfig, members_of
from adapters.methods.interface import KINDS
from adapters.methods.presets import load as load_config
from adapters.verbs.base import Verbs


class ActivationVerbs(Verbs):
    """Setting and asking for what is active."""

    def set_active_adapters(self, adapter_setup: Any, skip_layers: Sequence[int] | None = None) -> None:
        """Activate a set-up for all following calls.

        Args:
            adapter_setup: An adapter name, a block, or None for no adapters.
            skip_layers: Layers in which no adapter acts (AdapterDrop).
        Raises:
            AdapterNameError: a name does not exist.
            CompositionError: blocks are nested in a way that means nothing.
        """
        self._engine.activate(adapter_setup, skip_layers)
        if (activate_heads := getattr(self, "_activate_heads_for", None)) is not None:
            activate_heads(self.active_adapters)

    @property
    def active_adapters(self) -> AdapterCompositionBlock | None:
        """The set-up that is active outside of every `AdapterSetup`."""
        return self.adapters_config.active_setup

    @active_adapters.setter
    def active_adapters(self, adapter_setup: Any) -> None:
        self.set_active_adapters(adapter_setup)

    def has_adapters(self) -> bool:
        """Whether an adapter has been added."""
        return len(self.adapters_config) > 0

    @property
    def has_parallel_adapters(self) -> bool:
        """Whether the active set-up runs adapters in parallel."""
        setup = self.active_adapters
        return setup is not None and setup.parallel_channels > 1

    def supports_adapter(self, type_or_config: Any) -> bool:
        """Whether this model can carry a method, given by its config, the config's name, or a kind such as "reft"."""
        if isinstance(type_or_config, str) and type_or_config in KINDS:
            return any(isinstance(hooked.site, KINDS[type_or_config]) for hooked in self._engine.hooked)
        config = load_config(
            str(type_or_config) if not isinstance(type_or_config, (AdapterConfig, Mapping)) else type_or_config
        )
        return all(map(self._engine.builder.supports, members_of(cast(AdapterConfig, config))))
