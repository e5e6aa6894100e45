"""What is in a model? Modules of adapters, and the summary table."""

from __future__ import annotations

from typing import Any

from torch import nn

from adapters.runtime.report import adapter_modules, adapter_summary
from adapters.verbs.activation import ActivationVerbs


class ListingVerbs(ActivationVerbs):
    """Modules of adapters, and the summary table."""

    def get_adapter(self, name: str) -> dict[int, dict[str, nn.Module]]:
        """The modules of an adapter as {layer: {location: module}}; layer -1 holds what belongs to the whole model."""
        self._engine.require(name)
        return adapter_modules(self._engine, name)

    def get_invertible_adapter(self) -> nn.Module | None:
        """The invertible adapter of the first adapter of the active set-up."""
        setup = self.active_adapters
        name = setup.first() if setup is not None else None
        return None if name is None else self.get_adapter(name).get(-1, {}).get("invertible")

    def adapter_summary(self, as_dict: bool = False) -> str | list[dict[str, Any]]:
        """A table of all adapters, of what blocks own (fusions, routings), and of the base model in its last row.

        Columns: name, architecture, parameters, share of the base model, active, trained.

        Args:
            as_dict: Return the rows as dicts.
        """
        return adapter_summary(self._engine, as_dict)
