"""Names and import places of `adapters` 1.x that code out there uses, as re-exports: nothing is defined twice.

`PLACES` is data: module that no longer exists -> where its names live now. Importing such a module works as before;
it is made when it is first asked for.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_CONFIGS = (
    "adapters.methods.config",
    "adapters.methods.presets",
    "adapters.methods.bottleneck",
    "adapters.methods.compacter",
    "adapters.methods.lora",
    "adapters.methods.ia3",
    "adapters.methods.mtl_lora",
    "adapters.methods.vera",
    "adapters.methods.prefix_tuning",
    "adapters.methods.prompt_tuning",
    "adapters.methods.reft",
    "adapters.methods.unions",
)
_FUSION = "adapters.composition.fusion_config"
_NAMES = "adapters.compat.names"
_AUTO = "adapters.auto"

PLACES: dict[str, tuple[str, ...]] = {
    "adapters.configuration": (*_CONFIGS, _FUSION, "adapters.runtime.adapters_config", _NAMES),
    "adapters.configuration.adapter_config": _CONFIGS,
    "adapters.configuration.adapter_fusion_config": (_FUSION,),
    "adapters.configuration.model_adapters_config": ("adapters.runtime.adapters_config", _NAMES),
    "adapters.configuration.adapter_arguments": ("adapters.training.arguments",),
    "adapters.context": ("adapters.runtime.active", _NAMES),
    "adapters.head_utils": (_NAMES,),
    "adapters.hub_mixin": (_NAMES,),
    "adapters.interface": ("adapters.methods.interface", _NAMES),
    "adapters.loading": ("adapters.compat.loading", "adapters.compat.files"),
    "adapters.methods.adapter_layer_base": (_NAMES,),
    "adapters.methods.modeling": (_NAMES, "adapters.methods.compacter", "adapters.methods.invertible"),
    "adapters.model_mixin": (_NAMES,),
    "adapters.models": (_AUTO,),
    "adapters.trainer": ("adapters.training.trainer",),
    "adapters.utils": (
        "adapters.hub.locate",
        "adapters.hub.listing",
        "adapters.methods.config",
        "adapters.compat.files",
        _NAMES,
    ),
    "adapters.wrappers": ("adapters.model", _NAMES),
    "adapters.wrappers.model": ("adapters.model",),
    "adapters.wrappers.configuration": (_NAMES,),
    "adapters.wrappers.interfaces": (_NAMES,),
}


def homes_of(place: str) -> tuple[str, ...] | None:
    """Where the names live that version 1 had in a module; None if it had no such module.

    Every model type had a package, such as `adapters.models.bert`, with a module `adapter_model`.
    """
    if place in PLACES:
        return PLACES[place]
    return (_AUTO,) if re.fullmatch(r"adapters\.models\.\w+(\.adapter_model)?", place) else None


class _Places(MetaPathFinder, Loader):
    """Finds the modules of which `homes_of` knows, and makes them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if homes_of(name) is None:
            return None
        return ModuleSpec(name, self, is_package=not name.endswith(".adapter_model"))

    def exec_module(self, module: ModuleType) -> None:
        homes = homes_of(module.__name__) or ()
        module.__doc__ = f"Names that `adapters` 1.x had here, from {', '.join(homes)}."

        def find(name: str) -> Any:
            for home in () if name.startswith("__") else homes:
                if hasattr(found := importlib.import_module(home), name):
                    return getattr(found, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}; its names come from {homes}")

        module.__dict__["__getattr__"] = find


def install() -> None:
    """Let Python find the modules of `PLACES`."""
    if not any(isinstance(finder, _Places) for finder in sys.meta_path):
        sys.meta_path.append(_Places())
