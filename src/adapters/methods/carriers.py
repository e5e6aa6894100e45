"""Does a module carry adapters of a kind? Classes for `isinstance`, named after the layers of version 1 of the library.

There, a module that could carry adapters was of one of these classes. Here the modules of the model stay what they are,
and adapters hang below them in dictionaries.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from adapters.errors import UnsupportedError


class _Asked(type):
    """Class of classes whose instances are the modules with one of their `containers` as a child."""

    def __instancecheck__(cls, module: Any) -> bool:
        containers = vars(cls).get("containers")
        if containers is None:
            return super().__instancecheck__(module)
        return isinstance(module, nn.Module) and any(
            isinstance(module._modules.get(name), nn.ModuleDict) for name in containers
        )


class AdapterLayerBase(nn.Module, metaclass=_Asked):
    """A module that carries adapters: those of a name are in a dictionary of it, such as `module.loras[name]`.

    Only for `isinstance` and `issubclass`.
    """

    containers: tuple[str, ...] = (
        *("adapters", "loras", "prefix_gates", "prefix_tunings", "prompt_tunings", "refts", "invertible_adapters"),
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: nothing would call such a module."""
        raise UnsupportedError(
            f"{cls.__name__} cannot be made: adapters hang on the model's own modules, and no layer of a model is "
            "replaced. A method of your own derives from adapters.methods.base.AdapterModule and goes into METHODS."
        )


class BottleneckLayer(AdapterLayerBase):
    """A module that carries bottlenecks: `module.adapters[name]`."""

    containers = ("adapters",)


class LoRALayer(AdapterLayerBase):
    """A linear map that carries adapters of linear maps: `module.loras[name]`."""

    containers = ("loras",)


class PrefixTuningLayer(AdapterLayerBase):
    """A module that carries prefixes or their gates: `module.prefix_tunings[name]`, `module.prefix_gates[name]`."""

    containers = ("prefix_tunings", "prefix_gates")


class PromptTuningLayer(AdapterLayerBase):
    """A module that carries prompts: `module.prompt_tunings[name]`."""

    containers = ("prompt_tunings",)


class ReftLayer(AdapterLayerBase):
    """A module that carries ReFT: `module.refts[name]`."""

    containers = ("refts",)


LoRALinear = LoRAMergedLinear = LoRALayer
