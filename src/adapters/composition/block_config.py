"""What do the configs of all blocks that own weights have in common? They are found by whatever names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from adapters.errors import ConfigError, choices
from adapters.methods.config import FrozenMapping

C = TypeVar("C", bound="BlockConfig")


@dataclass(eq=False)
class BlockConfig(FrozenMapping):
    """Hyperparameters of what a block owns.

    Class attributes:
        noun: What it is called: see `BlockModule`.
    """

    noun: ClassVar[str]

    @classmethod
    def found(cls: type[C], config: Any, presets: Mapping[str, C], default: str, changes: Mapping[str, Any]) -> C:
        """The config that `config` means.

        Args:
            config: A config, its dict, or a name; nothing for the default.
            presets: The configs that have names.
            default: One of the names.
            changes: Fields to change in the config; those that are None are ignored.
        Raises:
            ConfigError: nothing is known under this name, or a value is not allowed.
        """
        config = config or default
        if isinstance(config, str):
            if config not in presets:
                raise ConfigError(f"There is no {cls.noun} config {config!r}. {choices(config, presets)}")
            known = presets[config]
        elif isinstance(config, cls):
            known = config
        elif isinstance(config, Mapping) and not isinstance(config, FrozenMapping):
            known = cls.from_dict(config)
        else:
            raise ConfigError(
                f"{config!r} is no {cls.noun} config. Give {cls.__name__}, its dict, or one of {', '.join(presets)}."
            )
        wanted = {name: value for name, value in changes.items() if value is not None}
        return known.replace(**wanted) if wanted else known
