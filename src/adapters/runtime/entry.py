"""Where a forward call enters the model: what it asks for, replicated inputs, masks, what a recomputation needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.call import CALL, Running
from adapters.composition.blocks import AdapterCompositionBlock
from adapters.methods.derived import WATCHING, Watch
from adapters.runtime.active import ACTIVE, STATIC, setup_key
from adapters.runtime.hooks import LivePrompt
from adapters.runtime.replication import batch_size, replicate

if TYPE_CHECKING:
    from adapters.runtime.engine import Engine


class Entry:
    """Follows the calls of one model. Hooks the root, the base model and the stacks whose masks adapters need."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.handles: list[RemovableHandle] = []
        self.stacks: dict[int, RemovableHandle] = {}
        self.watches: dict[str, Watch] = {}
        self.static_key = setup_key(None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "watches": {}}

    def attach(self) -> None:
        """Follow calls from now on."""
        if self.handles:
            return
        modules = {id(m): m for m in (self.engine.root, self.engine.base)}
        for module in modules.values():
            self.handles.append(module.register_forward_pre_hook(self.on_call, prepend=True, with_kwargs=True))
            self.handles.append(module.register_forward_hook(self.on_return, prepend=True, always_call=True))

    def detach(self) -> None:
        """Leave no hook behind."""
        for handle in (*self.handles, *self.stacks.values()):
            handle.remove()
        self.handles.clear()
        self.stacks.clear()

    def follow_stacks(self) -> None:
        """Follow the stacks whose masks the adapters need that are there now, and no others."""
        needed = {id(live.site.stack): live.site.stack for live in self.engine.masked if live.modules}
        for key in set(self.stacks) - set(needed):
            self.stacks.pop(key).remove()
        for key in set(needed) - set(self.stacks):
            self.stacks[key] = needed[key].register_forward_pre_hook(self.on_stack, with_kwargs=True)

    # -------------------------------------------------------------------------------------------------- hooks

    def on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        engine, call = self.engine, CALL.now
        if call.root is None or call.root is module:
            call.root = module
            call.gating = {} if kwargs.pop("output_adapter_gating_scores", False) else None
            call.fusion = {} if kwargs.pop("output_adapter_fusion_attentions", False) else None
            call.task_ids = kwargs.pop("task_ids", None)
            call.replicated = kwargs.pop("adapter_input_parallelized", False) or call.given
            call.residual = call.override = call.hidden = call.copies = None
            if not torch.compiler.is_compiling():
                WATCHING.watch = self._watch()
                WATCHING.watch.look()
        if module is not engine.base and hasattr(module, "heads"):
            return args, kwargs
        copies = engine.replication.copies.get(ACTIVE.key, 1)
        if copies > 1 and not call.replicated:
            call.replicated = True
            if (
                module is engine.base
                and (engine.root is engine.base or hasattr(engine.root, "heads"))
                and engine.replication.takes_over(kwargs)
            ):
                call.copies = batch_size(args, kwargs), copies
            else:
                return replicate(args, kwargs, copies)
        return args, kwargs

    def _watch(self) -> Watch:
        """What watches the constants of the set-up in force."""
        key = self.static_key if ACTIVE.key == STATIC else ACTIVE.key
        if (watch := self.watches.get(key)) is None:
            watch = self.watches[key] = Watch()
        return watch

    def on_return(self, module: nn.Module, args: Any, output: Any) -> Any:
        call = CALL.now
        if module is not call.root:
            return None
        scores = {"adapter_gating_scores": call.gating, "adapter_fusion_attentions": call.fusion}
        call.root = call.gating = call.fusion = call.task_ids = call.copies = None
        if not torch.compiler.is_compiling():
            WATCHING.watch = None
        call.stacks, call.windows = {}, None
        call.replicated = False
        asked = {name: value for name, value in scores.items() if value is not None}
        if not asked or output is None:
            return None
        if isinstance(output, tuple):
            return (*output, *asked.values())
        for name, value in asked.items():
            output[name] = value
        return output

    def on_stack(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note the stack's mask and its number of cached positions; lengthen the mask for prompts."""
        cache = kwargs.get("past_key_values")
        offset = 0 if cache is None else int(cache.get_seq_length())
        mask, args, kwargs = _argument(module, "attention_mask", args, kwargs)
        prompts = sum(
            live.length() for live in self.engine.masked if isinstance(live, LivePrompt) and live.site.stack is module
        )
        if prompts and isinstance(mask, Tensor) and mask.dim() == 2:
            mask = torch.cat([mask.new_ones(mask.shape[0], prompts), mask], 1)
            kwargs["attention_mask"] = mask
        CALL.now.stacks[id(module)] = Running(mask if isinstance(mask, Tensor) else None, offset)
        return args, kwargs

    # ------------------------------------------------------------------------------------------ recomputation

    def carry(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """`layer`, made to run under what is in force now, whenever and on whatever thread it runs."""
        engine, config, key = self.engine, self.engine.config, ACTIVE.key
        setup, skipped = engine.current(), config.skip_layers
        facts = dict(vars(CALL.now))
        facts["stacks"] = dict(CALL.now.stacks)

        def run(*args: Any, **kwargs: Any) -> Any:
            now = key
            if key == STATIC and (config.active_setup is not setup or config.skip_layers != skipped):
                now = setup_key(setup)
            call = CALL.now
            if call.root is facts["root"] and ACTIVE.key == now:
                return layer(*args, **kwargs)
            if now != STATIC:  # what was planned for it may be gone by now
                engine.ensure(now, setup)
            before, before_key = dict(vars(call)), ACTIVE.key
            vars(call).update(facts)
            call.gating = call.fusion = None
            call.replaying = True
            ACTIVE.key = now
            try:
                return layer(*args, **kwargs)
            finally:
                vars(call).update(before)
                ACTIVE.key = before_key

        return run

    # ---------------------------------------------------------------------------------------------- generate

    @contextmanager
    def generation(self, kwargs: dict[str, Any], inputs: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Facts of a `generate` call: inputs are replicated here, once; the prompt's length is known to methods."""
        call = CALL.now
        setup = self.engine.current()
        copies = setup.parallel_channels if isinstance(setup, AdapterCompositionBlock) else 1
        before = call.given, call.generating, call.prompts, call.prompt_mask, call.gates
        if copies > 1 and not call.given:
            (inputs,), kwargs = replicate((inputs,), kwargs, copies)
        call.given, call.generating = copies > 1 or call.given, True
        encodes = getattr(self.engine.base.config, "is_encoder_decoder", False)
        call.prompts, call.gates = {}, {}
        call.prompt_mask = None if encodes else kwargs.get("attention_mask")
        try:
            yield inputs, kwargs
        finally:
            call.given, call.generating, call.prompts, call.prompt_mask, call.gates = before


_POSITIONS: dict[tuple[type[nn.Module], str], int | None] = {}


def _argument(
    module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The value of one argument of `module.forward`, moved from the positional to the named arguments."""
    if name in kwargs or not args:
        return kwargs.get(name), args, kwargs
    key = type(module), name
    if key not in _POSITIONS:
        names = list(inspect.signature(module.forward).parameters)
        _POSITIONS[key] = names.index(name) if name in names else None
    index = _POSITIONS[key]
    if index is None or index >= len(args):
        return None, args, kwargs
    names = list(inspect.signature(module.forward).parameters)
    kwargs = {**dict(zip(names[index:], args[index:])), **kwargs}
    return kwargs[name], args[:index], kwargs
