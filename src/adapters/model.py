"""`init` gives the verbs on adapters to a model you have. The verbs themselves are in `verbs/`, a file per group."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _get_model_class

from adapters.call import CALL
from adapters.checkpoint.full_model import add_registered, is_old
from adapters.errors import UnsupportedError
from adapters.heads.model import HUB
from adapters.methods.config import AdapterConfig
from adapters.methods.interface import AdapterModelInterface
from adapters.runtime.adapters_config import ModelAdaptersConfig
from adapters.runtime.engine import Engine
from adapters.verbs.adapter_files import AdapterFileVerbs
from adapters.verbs.calls import CallVerbs
from adapters.verbs.embeddings import EmbeddingVerbs
from adapters.verbs.fusion import FusionVerbs
from adapters.verbs.head_files import HeadFileVerbs
from adapters.verbs.hubs import HubVerbs
from adapters.verbs.lifecycle import LifecycleVerbs
from adapters.verbs.listing import ListingVerbs
from adapters.verbs.model_files import ModelFileVerbs
from adapters.verbs.peft import PeftVerbs, check_free_of_peft
from adapters.verbs.plain import PlainModule, prepare
from adapters.verbs.routing import RoutingVerbs
from adapters.verbs.setup_files import SetupFileVerbs
from adapters.verbs.training import TrainingVerbs
from adapters.verbs.weights import WeightVerbs

logger = logging.getLogger(__name__)


class AdapterModelMixin(
    PeftVerbs,
    LifecycleVerbs,
    FusionVerbs,
    RoutingVerbs,
    TrainingVerbs,
    WeightVerbs,
    ListingVerbs,
    AdapterFileVerbs,
    SetupFileVerbs,
    HeadFileVerbs,
    EmbeddingVerbs,
    HubVerbs,
    ModelFileVerbs,
    CallVerbs,
):
    """Adapters for a Transformers model. Made by `adapters.init(model)` or one of the `XAdapterModel` classes.

    The verbs are grouped, a file each in `verbs/`: adding and deleting (`lifecycle.py`), activating (`activation.py`),
    training (`training.py`), fusing (`fusion.py`), routing (`routing.py`), merging and moving (`weights.py`), listing
    (`listing.py`), files (`adapter_files.py`, `setup_files.py`, `head_files.py`, `model_files.py`), input embeddings
    (`embeddings.py`), hubs (`hubs.py`), the names that Transformers has from PEFT (`peft.py`), calls (`calls.py`).
    """

    def _init_adapters(
        self,
        adapters_config: ModelAdaptersConfig | None = None,
        interface: AdapterModelInterface | None = None,
        example_inputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Give this model an engine, and the adapters that `adapters_config` (or the model config) lists."""
        model = cast(PreTrainedModel, self)
        stored, data, interface = adapters_config, None, copy.deepcopy(interface)
        if stored is None and (data := getattr(model.config, "adapters", None)):
            models, fusion = (getattr(model.config, n, None) for n in ("adapter_fusion_models", "adapter_fusion"))
            stored = ModelAdaptersConfig.from_dict(data, models, fusion)
            logger.warning(
                "The config lists the adapters %s. They are added without trained weights: open a folder that holds "
                "them with adapters.load_model or an AdapterModel class.",
                list(stored),
            )
        base = model.get_submodule(interface.base_model) if interface and interface.base_model else model.base_model
        self.__dict__["_engine"] = Engine(model, base, ModelAdaptersConfig(), interface, example_inputs)
        self.model_frozen = False
        if stored is not None:
            for name in stored:
                self._engine.add(name, cast(AdapterConfig, stored.get(name)))
            for register in stored.owned.values():
                for name in register.configs:
                    add_registered(self._engine, register, name, old=data is not None and is_old(data))
        self._on_heads_changed()
        if hasattr(model.config, "adapters"):
            del model.config.adapters
        self._engine.take_over()
        for part in {id(module): module for module in (model.base_model, base)}.values():
            if part is not model and isinstance(part, PreTrainedModel):
                part.__class__ = adapted_class(type(part), BaseModelMixin)
                part.__dict__["_engine"] = self._engine

    def _on_heads_changed(self) -> None:
        inverted = hasattr(self, "heads") or self._engine.spec.static_inverse
        self._engine.set_output_embeddings(self._output_embedding_modules() if inverted else ())

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """As in Transformers; invertible adapters are undone in front of the new layer."""
        super().set_output_embeddings(new_embeddings)  # type: ignore[misc]
        if "_engine" in vars(self):
            self._on_heads_changed()

    def __reduce_ex__(self, protocol: Any) -> Any:
        base = getattr(type(self), "_adapted_class", None)
        if base is None:
            return super().__reduce_ex__(protocol)
        mixin = BaseModelMixin if isinstance(self, BaseModelMixin) else AdapterModelMixin
        return _rebuild, (base, mixin), self.__dict__


class _OfWhole:
    """An attribute that a base model has from the whole model in which it stands."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, base: Any, kind: type | None = None) -> Any:
        return getattr(AdapterModelMixin, self.name, self) if base is None else getattr(base._engine.root, self.name)

    def __set__(self, base: Any, value: Any) -> None:
        setattr(base._engine.root, self.name, value)


class BaseModelMixin(AdapterModelMixin):
    """The base model inside of a model with adapters, such as `model.bert`: its verbs are those of the whole model.

    Adapters are named, activated, trained and saved for both together, whichever of them is asked. What concerns the
    module itself is its own: calls, gradient checkpointing, `save_pretrained`, `load_state_dict`. Its class makes plain
    models.
    """

    _adapted_class: ClassVar[type[PreTrainedModel]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """A plain model, by the arguments of its class; without any, what a copy is made of."""
        return cls._adapted_class(*args, **kwargs) if args or kwargs else super().__new__(cls)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As the plain class."""
        return cls._adapted_class.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As every module. A call from outside of the whole model is followed as one of the whole model is."""
        inside = torch.compiler.is_compiling() or CALL.now.root is self._engine.root
        if inside or "_is_replica" in self.__dict__:
            return super(CallVerbs, self).__call__(*args, **kwargs)  # type: ignore[misc]
        return super().__call__(*args, **kwargs)


_OWN = {"save_pretrained", "peft_config", "prompt_encoder"}
"""What PEFT's verbs have that a base model answers itself, like calls and files of whole models."""
_GROUPS = [group for group in AdapterModelMixin.__bases__ if group not in (ModelFileVerbs, CallVerbs)]
for _name in {name for group in _GROUPS for name in dir(group) if not name.startswith("_")} - _OWN:
    setattr(BaseModelMixin, _name, _OfWhole(_name))
for _name in ("model_frozen", "_on_heads_changed"):
    setattr(BaseModelMixin, _name, _OfWhole(_name))


def _rebuild(base: type[nn.Module], mixin: type[AdapterModelMixin] = AdapterModelMixin) -> Any:
    adapted: Any = adapted_class(base, mixin)
    return adapted.__new__(adapted)


_ADAPTED: dict[tuple[type, type], type] = {}


def adapted_class(base: type[nn.Module], mixin: type[AdapterModelMixin] = AdapterModelMixin) -> type[Any]:
    """`base` with the verbs of a mixin, under its own name."""
    if (base, mixin) not in _ADAPTED:
        members = {"_adapted_class": base, "__module__": base.__module__, "__doc__": base.__doc__}
        between = () if issubclass(base, PreTrainedModel) else (PlainModule,)
        _ADAPTED[base, mixin] = type(base.__name__, (mixin, *between, base), members)
    return _ADAPTED[base, mixin]


def init(
    model: Any,
    adapters_config: ModelAdaptersConfig | None = None,
    interface: Any = None,
    example_inputs: Mapping[str, Any] | None = None,
) -> Any:
    """Give a Transformers model adapters, in place.

    Its outputs, weights and `state_dict` stay what they were until an adapter is added. Where its places are is known
    for some types; for all others it is found once, by tracing a small model of the same class, and remembered.

    Args:
        model: A model of any `ForX` class, or a base model, of any type; or any module of torch, with `example_inputs`.
        adapters_config: Adapters to add right away.
        interface: Where the places of this model are; takes precedence over what is known about its type.
        example_inputs: Arguments of one forward pass, for models whose inputs cannot be told from their signature. The
            model itself is traced with them, unless its type is known.
    Returns:
        The same model.
    Raises:
        UnsupportedError: no forward pass of a model of an unknown type succeeds, or PEFT adapters are loaded in it.
    """
    if isinstance(model, AdapterModelMixin):
        return model
    alone = isinstance(model, nn.Module) and (example_inputs is not None or interface is not None)
    if not isinstance(model, PreTrainedModel) and not alone:
        raise UnsupportedError(
            "init needs a Transformers model, or another module of torch with example_inputs={...}, which are the "
            f"arguments of one forward pass, got {type(model).__name__}."
        )
    check_free_of_peft(model)
    if isinstance(getattr(model, "base_model", None), AdapterModelMixin):
        raise UnsupportedError(
            f"The base model of this {type(model).__name__} has adapters already. Build the whole model of a plain "
            "base model, call init on it, and load the adapters into it from a folder."
        )
    plain: Any = type(model)
    adapted: Any = model
    before = dict(vars(model))
    try:
        if not isinstance(model, PreTrainedModel):
            prepare(model)
        adapted.__class__ = adapted_class(plain)
        adapted._init_adapters(adapters_config, interface, example_inputs)
    except BaseException:  # an interrupt too
        if (engine := vars(model).get("_engine")) is not None:
            engine.withdraw()
        adapted.__class__ = plain
        vars(model).clear()
        vars(model).update(before)
        raise
    return adapted


def load_model(path: Any, model_class: type[Any], interface: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Open the folder of a whole model that was saved with its adapters.

    Args:
        path: Folder or hub repository.
        model_class: A class of Transformers, such as `BertForSequenceClassification`, or one with flexible heads; or an
            Auto class, such as `AutoAdapterModel`, which takes that of the folder's model type.
        interface: Where the places of the model are; by default the one that was saved with it, if there is one.
        args, kwargs: Arguments of its `from_pretrained`.
    Returns:
        The model with its adapters. None of them is active.
    """
    if issubclass(model_class, _BaseAutoModelClass):
        hub = {key: kwargs[key] for key in (*HUB, "trust_remote_code") if key in kwargs}
        config = kwargs.get("config") or AutoConfig.from_pretrained(path, **hub)
        model_class = _get_model_class(config, model_class._model_mapping)
    if issubclass(model_class, BaseModelMixin):
        model_class = model_class._adapted_class
    opened = model_class if issubclass(model_class, AdapterModelMixin) else adapted_class(model_class)
    return opened.from_pretrained(path, *args, interface=interface, **kwargs)
