"""Objects that save and load one kind of thing of a model: its adapters, fusions or heads. They call the model's verbs.

They also serve as `custom_weights_loaders` of those verbs, and so do classes that derive from `WeightsLoader`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from adapters.checkpoint.layout import PathLike


class WeightsLoader:
    """Base of what saves and loads something of a model beside an adapter.

    Args:
        model: The model.
        use_safetensors: As for `save_adapter`.
    """

    def __init__(self, model: Any, *, use_safetensors: bool = True) -> None:
        self.model, self.use_safetensors = model, use_safetensors

    def save(self, save_directory: PathLike, name: str, **kwargs: Any) -> None:
        """Save what is called `name` into a folder."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it saves.")

    def load(
        self,
        save_directory: PathLike,
        load_as: str | None = None,
        loading_info: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load what lies in a folder, under the name `load_as` if one is given."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it loads.")


class _VerbsLoader(WeightsLoader):
    """Saves and loads by the verbs `save_<stem>` and `load_<stem>` of the model, with these options."""

    stem: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {"with_head": False}

    def save(self, save_directory: PathLike, name: str, **kwargs: Any) -> None:
        verb = getattr(self.model, f"save_{self.stem}")
        verb(save_directory, name, **{"use_safetensors": self.use_safetensors, **self.options, **kwargs})

    def load(
        self,
        save_directory: PathLike,
        load_as: str | None = None,
        loading_info: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> tuple[PathLike, Any]:
        """The folder, and the name of what was loaded."""
        given = {"load_as": load_as, "loading_info": loading_info, "use_safetensors": self.use_safetensors}
        return save_directory, getattr(self.model, f"load_{self.stem}")(
            save_directory, **given, **self.options, **kwargs
        )


class AdapterLoader(_VerbsLoader):
    """Saves and loads adapters, without heads."""

    stem = "adapter"


class AdapterFusionLoader(_VerbsLoader):
    """Saves and loads fusions, without heads."""

    stem = "adapter_fusion"


class PredictionHeadLoader(_VerbsLoader):
    """Saves and loads prediction heads."""

    stem, options = "head", MappingProxyType({})
