"""What is in a model? Modules of adapters, and the summary table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from adapters.methods.carriers import AdapterLayerBase
from adapters.runtime.report import adapter_modules, adapter_summary
from adapters.sites.resolve import modules_of
from adapters.verbs.activation import ActivationVerbs


class ListingVerbs(ActivationVerbs):
    """Modules of adapters, and the summary table."""

    def get_adapter(self, name: str) -> dict[int, dict[str, nn.Module]]:
        """The modules of an adapter as {layer: {location: module}}; layer -1 holds what belongs to the whole model.

        There are none of an adapter that does not exist.
        """
        return adapter_modules(self._engine, name) if name in self._engine.parts else {}

    def get_invertible_adapter(self) -> nn.Module | None:
        """The invertible adapter of the first adapter of the active set-up."""
        setup = self.active_adapters
        name = setup.first() if setup is not None else None
        return None if name is None else self.get_adapter(name).get(-1, {}).get("invertible")

    @property
    def model_name(self) -> str | None:
        """Name or path of the base model, as its config has it."""
        return getattr(self.config, "name_or_path", None) or None  # type: ignore[attr-defined]

    def iter_layers(self) -> Iterator[tuple[int, nn.Module]]:
        """Number and module of every layer, those of an encoder first."""
        engine = self._engine
        lists = (modules_of(engine.base, layers) for layers in engine.spec.layers)
        yield from enumerate(layer for found in lists for layer in found)

    def apply_to_adapter_layers(self, function: Callable[[int, nn.Module], Any]) -> None:
        """Call `function(layer, module)` for all modules in the layers that carry adapters: see `AdapterLayerBase`."""
        for number, layer in self.iter_layers():
            for module in list(layer.modules()):
                if isinstance(module, AdapterLayerBase):
                    function(number, module)

    def get_labels_dict(self) -> dict[int, str] | None:
        """Label of each id, as the model's config has them; None if it has none."""
        labels: Mapping[int, str] | None = getattr(self.config, "id2label", None)  # type: ignore[attr-defined]
        return None if labels is None else dict(labels)

    def get_labels(self) -> list[str] | None:
        """Labels in the order of their ids; None as for `get_labels_dict`."""
        labels = self.get_labels_dict()
        return None if labels is None else [labels[index] for index in sorted(labels)]

    def adapter_summary(self, as_dict: bool = False) -> str | list[dict[str, Any]]:
        """A table of all adapters, of what blocks own (fusions, routings), and of the base model in its last row.

        Columns: name, architecture, parameters, share of the base model, active, trained.

        Args:
            as_dict: Return the rows as dicts.
        """
        return adapter_summary(self._engine, as_dict)
