"""Where `Parallel` makes one copy of the batch per child: at the model's input, or at the first layer that differs.

Layers below the first adapted one compute the same for every child. In models with one stack of layers the copies are
made in front of that layer, as long as nothing else looks at the rows of single layers: caches and recorded states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.utils.generic import ModelOutput

from adapters.call import CALL

if TYPE_CHECKING:
    from adapters.runtime.engine import Engine
    from adapters.runtime.programs import Program

BATCHED = ("input_ids", "inputs_embeds", "pixel_values", "encoder_outputs", "decoder_input_ids", "attention_mask")
"""Arguments that tell the batch size, in this order; where there is none of them, the first tensor does."""

UNBATCHED = ("cache_position", "past_key_values", "task_ids")
"""Arguments that are never replicated."""


RECORDED = ("output_hidden_states", "output_attentions")


class Replication:
    """Copies of the batch in front of a layer."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.handles: list[RemovableHandle] = []
        stacks, inside = engine.spec.layers, engine.spec.copies_inside
        self.layers = list(engine.base.get_submodule(stacks[0].path)) if inside and len(stacks) == 1 else []  # type: ignore[call-overload]

    def level(self, program: Program) -> int:
        """The layer in front of which a program copies rows; 0 where it does so at the model's input."""
        return program.first_layer or 0 if self.layers and program.copies > 1 else 0

    def serve(self, program: Program) -> None:
        """Hook the layers, if the program needs it."""
        if self.level(program) > 0 and not self.handles:
            for number, layer in enumerate(self.layers):
                hook = partial(self.on_layer, number)
                self.handles.append(layer.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))

    def detach(self) -> None:
        """Leave no hook behind."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    def takes_over(self, program: Program, kwargs: dict[str, Any]) -> bool:
        """Whether this call can be replicated in front of a layer instead of at its input."""
        config = self.engine.base.config
        cached = kwargs.get("past_key_values") is not None or kwargs.get(
            "use_cache", getattr(config, "use_cache", False)
        )
        decodes = getattr(config, "is_decoder", False) or self.engine.spec.causal
        recorded = any(kwargs.get(name, getattr(config, name, False)) for name in RECORDED)
        possible = not recorded and not (cached and decodes) and not CALL.now.generating
        return possible and self.level(program) > 0

    def on_layer(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = CALL.now
        if call.copies is None or number < self.level(call.program):
            return None
        batch, copies = call.copies
        return replicate(args, kwargs, copies, batch)


def batch_size(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Rows of the batch, from the first argument that tells."""
    named = [kwargs[name] for name in BATCHED if kwargs.get(name) is not None]
    others = [value for name, value in kwargs.items() if name not in UNBATCHED]  # sounds, series, boxes
    return next((t.shape[0] for t in _tensors((*named, *args, *others))), None)


def replicate(
    args: tuple[Any, ...], kwargs: dict[str, Any], copies: int, batch: int | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs with `copies` times as many rows, child-major: all rows for the first child, then all for the second."""
    batch = batch_size(args, kwargs) if batch is None else batch

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            same = value.dim() > 0 and value.shape[0] == batch
            return value.repeat(copies, *[1] * (value.dim() - 1)) if same else value
        if isinstance(value, ModelOutput):
            return type(value)(**{name: copy(entry) for name, entry in value.items()})
        if type(value) in (tuple, list):
            return type(value)(copy(entry) for entry in value)
        return value

    return tuple(map(copy, args)), {n: v if n in UNBATCHED else copy(v) for n, v in kwargs.items()}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.dim():
            yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _tensors(entry)
