"""Which model do DPO, KTO and GRPO compare with? The one that trains, without what trains: no second one is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import CompositionError, MergeError, UnsupportedError
from adapters.model import AdapterModelMixin
from adapters.runtime.active import AdapterSetup
from adapters.runtime.engine import Engine
from adapters.runtime.parts import parameters_of


class ReferenceModel(nn.Module):
    """A model with adapters under a fixed set-up, for trainers that ask for a reference. Made by `reference_model`.

    It has no parameters: it is the model itself, wherever that is moved and however it is prepared. A call runs in
    evaluation mode and without gradients, and leaves the model as it was. A copy is of the same model, or of its copy
    where both are copied together.

    Attributes:
        model: The model that runs.
        setup: The set-up under which it does; None for the base model alone.
    """

    model: Any

    def __init__(self, model: Any, adapter_setup: Any = None) -> None:
        super().__init__()
        vars(self)["model"] = model  # not as a child, which would give it parameters
        self.setup = AdapterSetup(adapter_setup).adapter_setup

    @property
    def config(self) -> Any:
        """The config of the model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns for the same arguments.

        Raises:
            MergeError: an adapter is merged into the weights of the model.
            CompositionError: something that the reference computes with trains.
        """
        with torch.no_grad(), AdapterSetup(self.setup), _evaluating(self.model):
            self._trained_beside()
            return self.model(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The same. Trainers give models other `forward` functions: those that act are the model's own."""
        return ReferenceModel.forward(self, *args, **kwargs)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """None.

        Raises:
            UnsupportedError: TRL asks for them in order to write to them (`sync_ref_model`).
        """
        if sys._getframe(1).f_globals.get("__name__") == "trl.trainer.callbacks":
            raise UnsupportedError(
                "sync_ref_model moves the weights of the reference towards those that train, but this reference is the "
                "model itself without what trains. Leave sync_ref_model out, or give the trainer a second model."
            )
        return super().parameters(recurse)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What its results depend on, for those who tell by it whether stored ones still hold: tensors and set-up."""
        with AdapterSetup(self.setup):
            beside = self._trained_beside()
        tensors: dict[str, Tensor] = self.model.state_dict(keep_vars=True)
        found = {name: tensor.detach() for name, tensor in tensors.items() if id(tensor) not in beside}
        return {**found, "setup": torch.tensor(list(repr(self.setup).encode()), dtype=torch.uint8)}

    def _trained_beside(self) -> set[int]:
        """Ids of the parameters that do not act under the set-up that is in force: these may train, no others."""
        engine: Engine = self.model._engine
        if engine.merged:
            raise MergeError(
                f"Adapter {next(iter(engine.merged))!r} is merged into the weights, so the reference would contain it. "
                "Call model.reset_adapter() first."
            )
        used = engine.programs.in_force().names
        acting: dict[bool, set[int]] = {True: set(), False: set()}
        for group in engine.added:
            for name in group:
                acting[group.key(name) in used].update(map(id, parameters_of([{name: group[name]}])))
        beside = acting[False] - acting[True]
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in beside:
                what = "the base model alone" if self.setup is None else repr(self.setup)
                raise CompositionError(
                    f"The reference is {what}, and would change, because {name} trains. Call model.train_adapter(name) "
                    "first, which freezes all but that adapter; or give the trainer a second model as reference."
                )
        return beside

    def __deepcopy__(self, memo: dict[int, Any]) -> ReferenceModel:
        return type(self)(memo.get(id(self.model), self.model), self.setup)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def reference_model(model: Any, adapter_setup: Any = None) -> ReferenceModel:
    """The reference of DPO, KTO or GRPO without a second model: `model` without the adapters that train.

        DPOTrainer(model, adapters.reference_model(model), args=...)

    Args:
        model: A model with adapters, which trains.
        adapter_setup: What is active in the reference, such as the adapter of an earlier stage, which does not train;
            None for the base model alone.
    Returns:
        A module without parameters, called like the model.
    Raises:
        UnsupportedError: the model has no adapters.
        AdapterNameError: a name in `adapter_setup` does not exist.
        MergeError: an adapter is merged into the weights of the model.
        CompositionError: something that the reference computes with trains. Calls of it check this again.
    """
    if not isinstance(model, AdapterModelMixin):
        raise UnsupportedError(
            f"reference_model is for models with adapters, got a {type(model).__name__}. Call adapters.init(model) and "
            "model.add_adapter(...) first. The reference of a model that trains as a whole is a second model."
        )
    reference = ReferenceModel(model, adapter_setup)
    with AdapterSetup(reference.setup):
        reference._trained_beside()
    return reference
