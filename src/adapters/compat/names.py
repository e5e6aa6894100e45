"""Names of `adapters` 1.x for what is called otherwise here."""

from __future__ import annotations

from typing import cast

from adapters.errors import ConfigError, choices
from adapters.methods import METHODS
from adapters.methods.base import AdapterModule
from adapters.methods.config import AdapterConfig, members_of
from adapters.methods.interface import KINDS
from adapters.methods.presets import load
from adapters.model import AdapterModelMixin

ModelAdaptersMixin = AdapterModelMixin
EmbeddingAdaptersMixin = AdapterModelMixin
InvertibleAdaptersMixin = AdapterModelMixin
InvertibleAdaptersWrapperMixin = AdapterModelMixin
ModelWithHeadsAdaptersMixin = AdapterModelMixin
AdapterLayerBase = AdapterModule
ComposableAdapterLayerBase = AdapterModule


class AdapterType:
    """What an adapter on a hub is for: a task or a language."""

    text_task = "text_task"
    text_lang = "text_lang"

    @classmethod
    def has(cls, value: str) -> bool:
        """Whether `value` is one of them."""
        return value in (cls.text_task, cls.text_lang)


class AdapterMethod:
    """Names of kinds of methods, for `adapter_methods` of an `AdapterModelInterface` and `supports_adapter`."""

    bottleneck = "bottleneck"
    prefix_tuning = "prefix_tuning"
    lora = "lora"
    prompt_tuning = "prompt_tuning"
    reft = "reft"
    invertible = "invertible"

    @staticmethod
    def get_from_config(config: AdapterConfig | str) -> list[str]:
        """The kinds of methods that a config asks for; none for methods that act at norms alone.

        Raises:
            ConfigError: no method handles it.
        """
        members = members_of(cast(AdapterConfig, load(config)))
        sites = [method.site_type for member in members for method in METHODS if method.handles(member)]
        if not sites:
            raise ConfigError(f"No method handles {config!r}. {choices(None, [method.__name__ for method in METHODS])}")
        return [kind for kind, site in KINDS.items() if any(issubclass(site, one) for one in sites)]


def get_adapter_interface(model_type: str) -> None:
    """The interface to pass to `init` for a model type: none, because `init` knows the places of known types itself."""
