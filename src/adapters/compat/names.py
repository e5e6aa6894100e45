"""Names of `adapters` 1.x for what is called otherwise here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from adapters.call import CALL, Call
from adapters.composition.fusion import AdapterFusion as BertFusion
from adapters.errors import ConfigError, UnsupportedError, choices
from adapters.heads.static import CLASSES, find_static_head, static_head_config, static_key_mapping
from adapters.methods import METHODS
from adapters.methods.bottleneck import Bottleneck as Adapter
from adapters.methods.carriers import AdapterLayerBase
from adapters.methods.config import AdapterConfig, members_of
from adapters.methods.interface import KINDS
from adapters.methods.invertible import NICE as NICECouplingBlock
from adapters.methods.presets import load
from adapters.model import AdapterModelMixin, BaseModelMixin, init
from adapters.runtime.entry import REPORTS
from adapters.verbs.hubs import HubVerbs as PushAdapterToHubMixin

__all__ = [
    "Adapter",
    "AdapterLayerBase",
    "AdapterMethod",
    "AdapterType",
    "BertFusion",
    "ComposableAdapterLayerBase",
    "EmbeddingAdaptersMixin",
    "EmbeddingAdaptersWrapperMixin",
    "ForwardContext",
    "InvertibleAdaptersMixin",
    "InvertibleAdaptersWrapperMixin",
    "ModelAdaptersMixin",
    "ModelBaseAdaptersMixin",
    "ModelWithHeadsAdaptersMixin",
    "NICECouplingBlock",
    "ParallelAdapter",
    "PushAdapterToHubMixin",
    "STATIC_TO_FLEX_HEAD_MAP",
    "get_adapter_interface",
    "get_head_config_and_rename_list",
    "init_adapters_config",
    "wrap_config",
]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ModelAdaptersMixin = AdapterModelMixin
EmbeddingAdaptersMixin = AdapterModelMixin
EmbeddingAdaptersWrapperMixin = AdapterModelMixin
InvertibleAdaptersMixin = AdapterModelMixin
InvertibleAdaptersWrapperMixin = AdapterModelMixin
ModelWithHeadsAdaptersMixin = AdapterModelMixin
ComposableAdapterLayerBase = AdapterLayerBase


class _IsBase(type):
    def __instancecheck__(cls, model: Any) -> bool:
        return isinstance(model, BaseModelMixin) or (
            isinstance(model, AdapterModelMixin) and model._engine.base is model
        )


class ModelBaseAdaptersMixin(AdapterModelMixin, metaclass=_IsBase):
    """A base model with adapters, alone or inside of a whole model; for `isinstance`."""


class _IsParallel(type):
    def __instancecheck__(cls, module: Any) -> bool:
        return isinstance(module, Adapter) and bool(module.config.is_parallel)


class ParallelAdapter(Adapter, metaclass=_IsParallel):
    """A bottleneck beside a branch (`is_parallel`); for `isinstance`."""


class ForwardContext:
    """Facts of a forward call.

    Version 1 needed it around the forward of a model and its parts. Here a call notes by itself what it needs, and
    parts that are called alone follow the set-up in force: as a context and as a decorator this changes nothing.

    Args:
        model, args, kwargs: The model and the arguments of the call; not used.
    """

    def __init__(self, model: Any = None, *args: Any, **kwargs: Any) -> None:
        self._call: Call = CALL.now

    def __enter__(self) -> ForwardContext:
        self._call = CALL.now
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @classmethod
    def wrap(cls, function: FunctionT) -> FunctionT:
        """`function` itself."""
        return function

    wrap_base = wrap

    @classmethod
    def get_context(cls) -> ForwardContext | None:
        """The facts of the call that runs on this thread; None outside of calls."""
        return None if CALL.now.program is None else cls()

    @classmethod
    def get_contexts(cls) -> list[ForwardContext]:
        """Those of the call that runs on this thread."""
        return [context] if (context := cls.get_context()) is not None else []

    @property
    def task_ids(self) -> Any:
        """The `task_ids` that the call was given."""
        return self._call.task_ids

    @property
    def adapter_input_parallelized(self) -> bool:
        """Whether the rows have been copied for the children of `Parallel`."""
        return self._call.replicated

    def __getattr__(self, name: str) -> Any:
        """`adapter_gating_scores`, `adapter_fusion_attentions`: scores by adapter, layer and place; if asked for."""
        asked = name.removeprefix("output_")
        if asked not in REPORTS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return asked in self._call.reports if name != asked else self._call.reports.get(name)


def wrap_config(config: Any) -> Any:
    """`config` itself: no config needs other names of its entries here."""
    return config


def init_adapters_config(model: Any, model_config: Any = None, adapters_config: Any = None) -> None:
    """What `adapters.init(model, adapters_config)` does; the model has its config already."""
    init(model, adapters_config)


class _StaticHeads(Mapping[str, Mapping[str, Any]]):
    """What is read from a class when it is asked for."""

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        try:
            row = find_static_head(name)
        except UnsupportedError as error:
            raise KeyError(str(error)) from error
        return {"config": {"head_type": row.head_type, **row.options}, "layers": list(row.modules)}

    def __iter__(self) -> Iterator[str]:
        return iter(CLASSES)

    def __len__(self) -> int:
        return len(CLASSES)


STATIC_TO_FLEX_HEAD_MAP: Mapping[str, Mapping[str, Any]] = _StaticHeads()
"""Class of Transformers -> config of the flexible head that its own one becomes, and where its layers come from.

KeyError for a class of which no flexible head can do the same, as for one that is not there."""


def get_head_config_and_rename_list(
    model_class_name: str, head_name: str, label2id: Mapping[str, int] | None, num_labels: int | None = None
) -> tuple[dict[str, Any], Callable[[str], str]]:
    """Config of the flexible head that a class's own one becomes, and what its tensors are called then."""
    mapping = static_key_mapping(model_class_name, head_name)

    def rename(key: str) -> str:
        pattern = next((pattern for pattern in mapping if re.match(pattern, key)), None)
        return key if pattern is None else re.sub(pattern, mapping[pattern], key)

    return static_head_config(model_class_name, label2id, num_labels), rename


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
