"""The verbs on a model. Everything here delegates in a line or two; `init` gives the verbs to a model you have."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters.checkpoint.verbs import CheckpointVerbs
from adapters.composition.blocks import AdapterCompositionBlock, Fuse, last_name
from adapters.errors import UnsupportedError
from adapters.methods import METHODS
from adapters.methods.config import AdapterConfig, members_of
from adapters.methods.presets import DEFAULT_ADAPTER_CONFIG
from adapters.methods.presets import load as load_config
from adapters.runtime import freezing, merging, sharing
from adapters.runtime.adapters_config import ModelAdaptersConfig
from adapters.runtime.engine import Engine, checkpoint_functions, reenters
from adapters.runtime.report import adapter_modules, adapter_summary
from adapters.sites.interface import KINDS, AdapterModelInterface

logger = logging.getLogger(__name__)


class AdapterModelMixin(CheckpointVerbs):
    """Adapters for a Transformers model. Made by `adapters.init(model)` or one of the `XAdapterModel` classes."""

    _engine: Engine

    # ------------------------------------------------------------------------------------------------ set-up

    def _init_adapters(
        self, adapters_config: ModelAdaptersConfig | None = None, interface: AdapterModelInterface | None = None
    ) -> None:
        """Give this model an engine, and the adapters that `adapters_config` (or the model config) lists."""
        model = cast(PreTrainedModel, self)
        stored = adapters_config
        if stored is None and (data := getattr(model.config, "adapters", None)):
            models, fusion = (getattr(model.config, n, None) for n in ("adapter_fusion_models", "adapter_fusion"))
            stored = ModelAdaptersConfig.from_dict(data, models, fusion)
            logger.warning(
                "The config lists the adapters %s. They are added without trained weights: open a folder that holds "
                "them with adapters.load_model or an AdapterModel class.",
                list(stored),
            )
        base = model.get_submodule(interface.base_model) if interface and interface.base_model else model.base_model
        self.__dict__["_engine"] = Engine(model, base, ModelAdaptersConfig(), interface)
        self.model_frozen = False
        if hasattr(model.config, "adapters"):
            del model.config.adapters
        if stored is not None:
            for name in stored:
                self._engine.add(name, cast(AdapterConfig, stored.get(name)))
            for fusion_name in stored.fusions:
                config, names = stored.get_fusion(fusion_name)
                own = fusion_name if fusion_name in stored.fusion_name_map else None
                self._engine.add_fusion(cast("list[str]", names), config, own)
        self._on_heads_changed()
        self._engine.adopt_checkpointing()

    def _output_embedding_modules(self) -> Iterable[nn.Module]:
        """Output embedding layers of this model."""
        with contextlib.suppress(AttributeError, NotImplementedError):
            module = cast(PreTrainedModel, self).get_output_embeddings()
            if module is not None:
                yield module

    def _on_heads_changed(self) -> None:
        inverted = hasattr(self, "heads") or self._engine.spec.static_inverse
        self._engine.set_output_embeddings(self._output_embedding_modules() if inverted else ())

    @property
    def adapters_config(self) -> ModelAdaptersConfig:
        """Names and configs of all adapters and fusions, and the active set-up."""
        return self._engine.config

    # ---------------------------------------------------------------------------------------------- lifecycle

    def add_adapter(
        self, adapter_name: str, config: Any = None, overwrite_ok: bool = False, set_active: bool = False
    ) -> None:
        """Add an untrained adapter.

        Args:
            adapter_name: Its name, without '.' and ','.
            config: A config, its dict, a name such as 'lora', a string such as 'lora[r=4]' or a JSON file; default
                'seq_bn'.
            overwrite_ok: Replace an adapter of the same name.
            set_active: Activate it, instead of what is active now.
        Raises:
            AdapterNameError: the name is malformed or taken.
            ConfigError: the config is not valid, or selects no place in this model.
            UnsupportedError: this model cannot carry the method.
        """
        found = cast(AdapterConfig, load_config(config if config is not None else DEFAULT_ADAPTER_CONFIG))
        if overwrite_ok and adapter_name in self.adapters_config:
            merging.unmerge(self._engine)
        self._engine.add(adapter_name, found, overwrite_ok)
        if set_active:
            self.set_active_adapters(adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter and the fusions it takes part in. Does nothing if there is none of this name."""
        if adapter_name in self.adapters_config:
            merging.unmerge(self._engine)
            self._engine.delete(adapter_name)

    def add_adapter_fusion(
        self,
        adapter_names: Fuse | Sequence[str] | str,
        config: Any = None,
        name: str | None = None,
        overwrite_ok: bool = False,
        set_active: bool = False,
    ) -> None:
        """Add AdapterFusion layers for some bottleneck adapters.

        Args:
            adapter_names: The fused adapters: a `Fuse` block, a list, or names joined by commas.
            config: 'dynamic' (default), 'static', an AdapterFusionConfig or its dict.
            name: Name of the fusion; by default the adapters' names joined by commas.
            overwrite_ok: Replace a fusion of the same name.
            set_active: Activate it.
        """
        names, key = _fusion_names(adapter_names, name)
        self._engine.add_fusion(names, config, None if key == ",".join(names) else key, overwrite_ok)
        if set_active:
            self.set_active_adapters(adapter_names if isinstance(adapter_names, Fuse) else Fuse(*names, name=name))

    def delete_adapter_fusion(self, adapter_names: Fuse | Sequence[str] | str) -> None:
        """Remove a fusion. Does nothing if there is none of this name."""
        _, key = _fusion_names(adapter_names, None)
        if key in self._engine.fusions:
            self._engine.delete_fusion(key)

    # --------------------------------------------------------------------------------------------- activation

    def set_active_adapters(self, adapter_setup: Any, skip_layers: Sequence[int] | None = None) -> None:
        """Activate a set-up for all following calls.

        Args:
            adapter_setup: An adapter name, a block, or None for no adapters.
            skip_layers: Layers in which no adapter acts (AdapterDrop).
        Raises:
            AdapterNameError: a name does not exist.
            CompositionError: blocks are nested in a way that means nothing.
        """
        if None not in self._engine.merged.values():
            merging.unmerge(self._engine)
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

    def set_adapter(self, adapter_setup: Any) -> None:
        """Same as `set_active_adapters`, under the name that Transformers uses."""
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
        kinds = {type(live.site) for live in self._engine.live}
        if isinstance(type_or_config, str) and type_or_config in KINDS:
            return KINDS[type_or_config] in kinds
        config = load_config(
            str(type_or_config) if not isinstance(type_or_config, (AdapterConfig, Mapping)) else type_or_config
        )
        methods = [
            [method for method in METHODS if method.handles(member)]
            for member in members_of(cast(AdapterConfig, config))
        ]
        return all(found and all(method.site_type in kinds for method in found) for found in methods)

    # ----------------------------------------------------------------------------------------------- training

    def train_adapter(self, adapter_setup: Any, train_embeddings: bool = False) -> None:
        """Freeze the base model, let the adapters of `adapter_setup` train, and activate it.

        Args:
            adapter_setup: An adapter name or a block.
            train_embeddings: Let the input embeddings train too.
        """
        block = self._engine.parse(adapter_setup)
        self._train_mode()
        freezing.train_adapters(self._engine, block.flatten() if block is not None else ())
        self._train_embeddings(train_embeddings)
        self.model_frozen = True
        self.set_active_adapters(adapter_setup)

    def train_adapter_fusion(self, adapter_setup: Any, unfreeze_adapters: bool = False) -> None:
        """Freeze base model and adapters, let the fusion layers of `adapter_setup` train, and activate it.

        Args:
            adapter_setup: A `Fuse` block, or a block that holds some.
            unfreeze_adapters: Let the fused adapters train too.
        """
        block = self._engine.parse(adapter_setup)
        fusions = self._engine.fusions_of(block)
        self._train_mode()
        adapters = block.flatten() if unfreeze_adapters and block is not None else ()
        freezing.train_fusions(self._engine, fusions, adapters)
        self._train_embeddings(False)
        self.model_frozen = True
        self.set_active_adapters(adapter_setup)

    def _train_mode(self) -> None:
        cast(nn.Module, self).train()

    def _train_embeddings(self, train: bool) -> None:
        model = cast(PreTrainedModel, self)
        model.get_input_embeddings().requires_grad_(train)
        for module in self._output_embedding_modules():
            module.requires_grad_(train)

    def freeze_model(self, freeze: bool = True) -> None:
        """Freeze or unfreeze the base model; adapters stay as they are."""
        freezing.freeze_base(self._engine, freeze)
        self.model_frozen = freeze

    def get_fusion_regularization_loss(self) -> Tensor | float:
        """0.01 * sum of ||I - W_v||^2 over the fusion layers that train."""
        layers: list[Any] = [part.module for parts in self._engine.fusions.values() for part in parts]
        return sum((layer.regularization_loss() for layer in layers), 0.0)

    # ------------------------------------------------------------------------------------------------ weights

    def merge_adapter(self, name: str) -> None:
        """Fold an adapter of linear maps (LoRA, DoRA, IA3) into the base weights."""
        merging.merge(self._engine, name)

    def reset_adapter(self, name: str | None = None) -> None:
        """Take merged adapters out of the base weights again, exactly."""
        merging.unmerge(self._engine)

    def share_parameters(
        self, adapter_names: Sequence[str], name: str | None = None, reference_adapter_name: str | None = None
    ) -> None:
        """Let multi-task adapters (`mtl_lora`) use one set of A and B.

        Args:
            adapter_names: The adapters.
            name: Name of what they share; by default their names joined by commas.
            reference_adapter_name: Whose values they start from; by default the first one's.
        """
        sharing.share(self._engine, adapter_names, name or ",".join(adapter_names), reference_adapter_name)

    def unshare_parameters(self, name: str) -> None:
        """Give every adapter a copy of its own of what it shares under `name`."""
        sharing.unshare(self._engine, name)

    def eject_prefix_tuning(self, name: str) -> None:
        """Replace the reparametrisation of a prefix by the keys and values it makes."""
        self._engine.eject(name)

    def adapter_to(self, name: str, device: Any = None, dtype: torch.dtype | None = None) -> None:
        """Move an adapter to a device or dtype."""
        self._engine.require(name)
        for part in self._engine.parts[name]:
            part.module.to(device=device, dtype=dtype)

    def adapter_fusion_to(self, adapter_names: Any, device: Any = None, dtype: torch.dtype | None = None) -> None:
        """Move a fusion to a device or dtype."""
        _, key = _fusion_names(adapter_names, None)
        self._engine.require_fusion(key)
        for part in self._engine.fusions[key]:
            part.module.to(device=device, dtype=dtype)

    # ------------------------------------------------------------------------------------------------ reports

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
        """A table of all adapters: name, architecture, parameters, share of the base model, active, trained."""
        return adapter_summary(self._engine, as_dict)

    # ------------------------------------------------------------------------------- what Transformers calls

    def generate(self, inputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers; with `Parallel` the result has the rows of all adapters, first adapter first."""
        if not self._engine.parts:
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        with self._engine.entry.generation(kwargs, inputs) as (inputs, kwargs):
            return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] | None = None, **kwargs: Any
    ) -> None:
        function = gradient_checkpointing_func or torch.utils.checkpoint.checkpoint
        carried = self._engine.checkpointed(function) if enable else function
        super()._set_gradient_checkpointing(enable, carried, **kwargs)  # type: ignore[misc]
        if enable and reenters(carried):
            self.enable_input_require_grads()

    def enable_input_require_grads(self) -> None:
        """Let embeddings have gradients, as in Transformers; nothing if checkpointing is on and does not need it.

        Transformers calls this for all checkpointing. Only the re-entrant kind needs it; with the other kind it would
        send every backward pass through the frozen layers below the first adapter.
        """
        model = cast(PreTrainedModel, self)
        kinds = [reenters(function) for function in checkpoint_functions(model)]
        if not kinds or any(kinds):
            model.disable_input_require_grads()
            super().enable_input_require_grads()  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        base = getattr(type(self), "_adapted_class", None)
        if base is None:
            return super().__reduce_ex__(protocol)
        return _rebuild, (base,), self.__dict__


def _rebuild(base: type[PreTrainedModel]) -> Any:
    adapted: Any = adapted_class(base)
    return adapted.__new__(adapted)


_ADAPTED: dict[type, type] = {}


def adapted_class(base: type[PreTrainedModel]) -> type[Any]:
    """`base` with the verbs of `AdapterModelMixin`, under its own name."""
    if base not in _ADAPTED:
        members = {"_adapted_class": base, "__module__": base.__module__, "__doc__": base.__doc__}
        _ADAPTED[base] = type(base.__name__, (AdapterModelMixin, base), members)
    return _ADAPTED[base]


def init(model: Any, adapters_config: ModelAdaptersConfig | None = None, interface: Any = None) -> Any:
    """Give a Transformers model adapters, in place.

    Its outputs, weights and `state_dict` stay what they were until an adapter is added.

    Args:
        model: A model of any `ForX` class, or a base model, of a known type or described by `interface`.
        adapters_config: Adapters to add right away.
        interface: Where the places of this model are; takes precedence over what is known about its type.
    Returns:
        The same model.
    Raises:
        UnsupportedError: the model's type is not known, or PEFT adapters are loaded in it.
    """
    if isinstance(model, AdapterModelMixin):
        return model
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedError(f"init needs a Transformers model, got {type(model).__name__}.")
    if getattr(model, "_hf_peft_config_loaded", False) or hasattr(model, "peft_config"):
        raise UnsupportedError(
            f"This {type(model).__name__} has PEFT adapters loaded, and the two libraries use the same method names. "
            "Load the plain model and call init on it, or keep using PEFT for this model."
        )
    plain: Any = type(model)
    adapted: Any = model
    adapted.__class__ = adapted_class(plain)
    try:
        adapted._init_adapters(adapters_config, interface)
    except Exception:
        adapted.__dict__.pop("_engine", None)
        adapted.__class__ = plain
        raise
    return adapted


def load_model(path: Any, model_class: type[Any], interface: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Open the folder of a whole model that was saved with its adapters.

    Args:
        path: Folder or hub repository.
        model_class: A class of Transformers, such as `BertForSequenceClassification`; or one with flexible heads.
        interface: Where the places of the model are; by default the one that was saved with it, if there is one.
        args, kwargs: Arguments of its `from_pretrained`.
    Returns:
        The model with its adapters. None of them is active.
    """
    opened = model_class if issubclass(model_class, AdapterModelMixin) else adapted_class(model_class)
    return opened.from_pretrained(path, *args, interface=interface, **kwargs)


def _fusion_names(names: Fuse | Sequence[str] | str, own: str | None) -> tuple[list[str], str]:
    if isinstance(names, Fuse):
        return [str(last_name(child)) for child in names], own or names.name
    listed = names.split(",") if isinstance(names, str) else list(names)
    return listed, own or ",".join(listed)
