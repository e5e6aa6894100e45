"""What do Transformers' own verbs for adapters, those of PEFT, mean on our models? And what do we tell PEFT?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters.checkpoint.adapters import adapter_state
from adapters.composition.blocks import AdapterCompositionBlock
from adapters.errors import AdapterNameError, CompositionError, MergeError, UnsupportedError, choices
from adapters.runtime.engine import Engine
from adapters.verbs.model_files import ModelFileVerbs

SAVING: ContextVar[bool] = ContextVar("saving", default=False)
"""Whether a whole model is being saved here: Transformers would write a model with PEFT adapters in another way."""


@dataclass(frozen=True)
class _Disabled:
    """What was active before `disable_adapters`."""

    setup: AdapterCompositionBlock | None
    skip_layers: list[int] | None
    heads: Any


class _UntilEnabled:
    """What `disable_adapters` returns: leaving it as a context enables the adapters again."""

    def __init__(self, enable: Callable[[], None]) -> None:
        self.enable = enable

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.enable()


def _for_peft(name: str) -> Any:
    """An attribute that PEFT asks a model for before it changes anything; nobody else gets to see it."""

    def answer(self: Any) -> NoReturn:
        if sys._getframe(1).f_globals.get("__name__", "").partition(".")[0] == "peft":
            raise UnsupportedError(
                f"This {type(self).__name__} has adapters of this library, and PEFT's would use the same module and "
                "method names. Give PEFT a plain model, or stay here: model.add_adapter(name, config='lora') adds an "
                "adapter, and model.load_adapter(folder) opens those of PEFT."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    return property(answer)


class PeftVerbs:
    """Verbs and attributes by which Transformers and PEFT speak of adapters, for models with ours."""

    _engine: Engine

    peft_config = _for_peft("peft_config")
    prompt_encoder = _for_peft("prompt_encoder")

    @property
    def _hf_peft_config_loaded(self) -> bool:
        """Whether something on a quantised base can train: the HF Trainer asks. Saving does not concern it."""
        model: Any = self
        if SAVING.get() or not getattr(model, "is_quantized", False):
            return False
        quantizer = getattr(model, "hf_quantizer", None)
        attached = "_engine" in vars(model) and any(name not in self._engine.merged for name in self._engine.parts)
        return attached and (quantizer is None or bool(quantizer.is_trainable))

    @_hf_peft_config_loaded.setter
    def _hf_peft_config_loaded(self, value: bool) -> None:
        """Adapters of PEFT are never loaded in these models."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in Transformers; the folder also holds all adapters, fusions and heads.

        Open it with `AutoAdapterModel.from_pretrained`, or with `adapters.load_model` as a plain class.
        """
        token = SAVING.set(True)
        try:
            super().save_pretrained(*args, **kwargs)  # type: ignore[misc]
        finally:
            SAVING.reset(token)

    save_pretrained.__wrapped__ = ModelFileVerbs.save_pretrained  # type: ignore[attr-defined]

    # --------------------------------------------------------------------------------------------- activation

    def set_adapter(self, adapter_setup: Any) -> None:
        """Same as `set_active_adapters`, under the name that Transformers uses.

        Raises:
            CompositionError: several names are given, which only blocks can.
        """
        if isinstance(adapter_setup, list | tuple):
            if len(adapter_setup) > 1:
                names = ", ".join(map(repr, adapter_setup))
                raise CompositionError(
                    f"set_adapter({adapter_setup!r}) does not say how they work together. Write Stack({names}) for one "
                    f"after the other, Average({names}) for their mean, or another block."
                )
            adapter_setup = adapter_setup[0] if adapter_setup else None
        self.set_active_adapters(adapter_setup)  # type: ignore[attr-defined]

    @property
    def active_adapter(self) -> str | None:
        """The last adapter of the active set-up; None without one. `active_adapters` has all of them."""
        setup: AdapterCompositionBlock | None = self.active_adapters  # type: ignore[attr-defined]
        return None if setup is None else setup.last()

    def disable_adapters(self) -> _UntilEnabled:
        """Run the base model alone, until `enable_adapters`, or while a context lasts.

            with model.disable_adapters():
                model(**inputs)

        `AdapterSetup(None)` does the same for one thread only.

        Raises:
            MergeError: an adapter is merged into the weights of the base model.
        """
        if self._engine.merged:
            raise MergeError(
                f"Adapter {next(iter(self._engine.merged))!r} is merged into the weights, so the base model cannot run "
                "alone. Call model.reset_adapter() first."
            )
        config = self._engine.config
        if config.active_setup is not None:
            heads = getattr(self, "active_head", None)
            self.__dict__["_disabled"] = _Disabled(config.active_setup, config.skip_layers, heads)
            self.set_active_adapters(None)  # type: ignore[attr-defined]
        return _UntilEnabled(self.enable_adapters)

    def enable_adapters(self) -> None:
        """Activate again what `disable_adapters` switched off; nothing if another set-up has been activated since.

        Raises:
            AdapterNameError: one of the adapters has been deleted since.
        """
        before: _Disabled | None = self.__dict__.pop("_disabled", None)
        if before is None or self._engine.config.active_setup is not None:
            return
        self.set_active_adapters(before.setup, before.skip_layers)  # type: ignore[attr-defined]
        if hasattr(self, "heads"):
            self.active_head = before.heads

    # -------------------------------------------------------------------------------------------------- files

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The tensors of an adapter, by the names that `save_adapter` gives them.

        Args:
            adapter_name: The adapter; by default the one that is active.
            state_dict: Where their values are taken from; by default from the model.
        Raises:
            AdapterNameError: there is no such adapter, or not exactly one is active.
            CheckpointError: `state_dict` lacks one of its tensors.
        """
        if adapter_name is None:
            setup = self._engine.config.active_setup
            active = sorted(setup.flatten()) if setup is not None else []
            if len(active) != 1:
                raise AdapterNameError(f"Active are {active}. Say which adapter. {choices(None, self._engine.parts)}")
            adapter_name = active[0]
        return adapter_state(self, adapter_name, state_dict)

    def enable_peft_hotswap(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not needed here, and refused.

        Raises:
            UnsupportedError: always; it says what to do instead.
        """
        raise UnsupportedError(
            "Weights are swapped without this: load_adapter(path, load_as=name) replaces those of an adapter of the "
            "same name and config in place, also in compiled models. Give adapters of different rank different names."
        )


def refuse_peft_config(*given: object) -> None:
    """Raise UnsupportedError if one of the arguments is a config of PEFT's."""
    for value in given:
        if type(value).__module__.partition(".")[0] == "peft":
            raise UnsupportedError(
                f"{type(value).__name__} is a config of PEFT. Write model.add_adapter(name, config='lora[r=8]'), or "
                "another config of this library, or keep using PEFT for this model."
            )


def check_free_of_peft(model: PreTrainedModel) -> None:
    """Raise UnsupportedError if PEFT adapters are in the model; forget failed attempts to load some."""
    if hasattr(model, "peft_config") or any(_is_of_peft(module) for module in model.modules()):
        raise UnsupportedError(
            f"This {type(model).__name__} has PEFT adapters loaded, and the two libraries use the same method names. "
            "Load the plain model and call init on it, or keep using PEFT for this model."
        )
    model.__dict__.pop("_hf_peft_config_loaded", None)


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.partition(".")[0] == "peft"
