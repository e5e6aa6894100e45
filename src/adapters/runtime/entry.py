"""Where a forward call enters the model: its program, what it asks for, replicated inputs, masks, recomputation."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.call import CALL, GATING, Call, Generation, Running
from adapters.composition.registry import BLOCK_MODULES
from adapters.errors import UnsupportedError
from adapters.methods.derived import WATCHING
from adapters.runtime.active import INNERMOST
from adapters.runtime.hooks import HookedLayer, HookedPrompt
from adapters.runtime.prompts import longer_mask
from adapters.runtime.replication import batch_size, replicate

if TYPE_CHECKING:
    from adapters.runtime.engine import Engine


REPORTS = (GATING, *(kind.report for kind in BLOCK_MODULES))
"""Entries of a model's output that hold scores; "output_" and one of them is the argument that asks for it."""


class Entry:
    """Follows the calls of one model. Hooks the root, the base model and the stacks whose masks adapters need.

    Attributes:
        attached: Whether it follows them, as it does while there are adapters.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.attached = False
        self.handles: list[RemovableHandle] = []
        self.stacks: dict[int, RemovableHandle] = {}

    def attach(self) -> None:
        """Follow calls from now on."""
        if self.attached:
            return
        self.attached = True
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
        self.attached = False

    def follow_stacks(self) -> None:
        """Follow the stacks whose masks the adapters need that are there now, and no others."""
        wanted = [hooked for hooked in self.engine.masked if hooked.names or self.engine.asks_for_masks()]
        stacks = [stack for hooked in wanted for stack in (hooked.site.stack, *getattr(hooked.site, "readers", ()))]
        needed = {id(stack): stack for stack in stacks}
        for key in set(self.stacks) - set(needed):
            self.stacks.pop(key).remove()
        for key in set(needed) - set(self.stacks):
            self.stacks[key] = needed[key].register_forward_pre_hook(self.on_stack, with_kwargs=True)

    def check_unfollowed(self) -> None:
        """Refuse what a call asks of adapters where there are none, and so no hook that would see the call.

        Raises:
            AdapterNameError: an `AdapterSetup` is in force that names one.
        """
        if INNERMOST.setup is not None:
            self.engine.programs.in_force()

    def check_compiled(self) -> None:
        """Let compiled code have guards on what it would not notice: the hooks, and a set-up that no hook would see.

        Raises:
            CompositionError: an `AdapterSetup` is in force that names an adapter, and there are none.
        """
        programs = self.engine.programs
        if programs.mark == "" or not self.attached:  # the first is never so
            programs.in_force()

    # -------------------------------------------------------------------------------------------------- hooks

    def on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        engine, call = self.engine, CALL.now
        if module is not engine.base and module is not engine.root:
            raise UnsupportedError(
                f"This is a replica of the base model of {type(engine.root).__name__}, which knows nothing of "
                "adapters. Put the whole model into DataParallel, not its base model; or use DistributedDataParallel."
            )
        if not self._continues(call, module):
            call = self._begin(module)
            call.reports = {name: {} for name in REPORTS if kwargs.pop(f"output_{name}", False)}
            call.task_ids = kwargs.pop("task_ids", None)
            given = call.generation is not None and call.generation.replicated
            call.replicated = kwargs.pop("adapter_input_parallelized", False) or given
        if module is not engine.base and hasattr(module, "heads"):
            return args, kwargs
        program = call.program
        copies = program.copies
        if copies > 1 and not call.replicated:
            call.replicated = True
            if (
                module is engine.base
                and (engine.root is engine.base or hasattr(engine.root, "heads"))
                and engine.replication.takes_over(program, kwargs)
            ):
                call.copies = batch_size(args, kwargs), copies
            else:
                return replicate(args, kwargs, copies)
        return args, kwargs

    def _continues(self, call: Call, module: nn.Module) -> bool:
        """Whether `module` is the base model and runs inside of the root, whose call is open on this thread."""
        mine = call.root is not None and call.program.model is self.engine.programs
        return mine and module is not self.engine.root and call.root is self.engine.root

    def _begin(self, module: nn.Module) -> Call:
        """Open a call, with the program that is in force."""
        programs = self.engine.programs
        if torch.compiler.is_compiling():
            call = CALL.now
            call.reset()
            call.root, call.program = module, programs.in_force()
            return call
        self._close_interrupted()
        program = programs.in_force()
        if self.engine.is_edited(program):
            self.engine.reread()
            program = programs.in_force()
        programs.open(program)
        call = Call(CALL.now.generation)
        if (mixture := CALL.now.next_mixture) is not None and mixture.program is program:
            call.assignment, call.mixture = mixture.assignment, mixture
            call.next_mixture = None
        call.root, call.program, call.outer = module, program, CALL.now
        call.unwatched = not (program.watching or torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
        call.moving = self.engine.moves()
        CALL.now = call
        WATCHING.watch = program.watch
        program.watch.look(None if call.mixture is None else call.mixture.names)
        return call

    def _close_interrupted(self) -> None:
        """Close calls of the base model that an interrupt has left open: a call of it cannot be inside of one."""
        while (root := CALL.now.root) is not None and root is self.engine.base and root is not self.engine.root:
            self._end(CALL.now)

    def _end(self, call: Call) -> None:
        """Close a call, and bring back the one around it."""
        if call.outer is None:  # compiled
            losses = call.losses
            call.root = call.program = None
            call.reset()
            call.losses = losses
            return
        if call.losses or call.outer.losses:
            others = [entry for entry in call.outer.losses if not self.engine.owns(entry[0])]
            call.outer.losses = others + call.losses
        CALL.now = call.outer
        outer = call.outer.program
        WATCHING.watch = None if outer is None else outer.watch
        call.program.model.close(call.program)

    def end_interrupted(self, before: Call) -> None:
        """Close the calls that were opened since `before` was the one on this thread and that nothing has closed."""
        while CALL.now is not before and CALL.now.outer is not None:
            self._end(CALL.now)

    def on_return(self, module: nn.Module, args: Any, output: Any) -> Any:
        call = CALL.now
        if module is not call.root:
            return None
        asked = call.reports
        self._end(call)
        if not asked or output is None:
            return None
        if isinstance(output, tuple):
            return (*output, *asked.values())
        for name, value in asked.items():
            output[name] = value
        return output

    def on_stack(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let prompts enter; note the stack's mask and its number of cached positions."""
        prompts = [hooked for hooked in self._prompts() if module in (hooked.site.stack, *hooked.site.readers)]
        cache, args, kwargs = _argument(module, "past_key_values", args, kwargs)
        states, args, kwargs = _argument(module, "cache_params", args, kwargs)
        offset = _computed(module, states) if cache is None else int(cache.get_seq_length())
        mask, args, kwargs = _argument(module, "attention_mask", args, kwargs)
        if any(hooked.site.argument or hooked.site.stack is not module for hooked in prompts):
            _, args, kwargs = _argument(module, "input_ids", args, kwargs)
        if mask is None and not offset and not torch.compiler.is_compiling():
            numbers, args, kwargs = _argument(module, "position_ids", args, kwargs)
            if _packed(numbers, kwargs):
                self._refuse_packed()
        for hooked in prompts:
            kwargs = hooked.entering(module, kwargs, offset)
            mask = kwargs.get("attention_mask")
        inputs = [*args[:1], *(kwargs.get(name) for name in ("input_ids", "inputs_embeds"))]
        span = next((tensor.shape[1] for tensor in inputs if isinstance(tensor, Tensor) and tensor.dim() > 1), None)
        call = CALL.now
        call.shares = []
        call.stacks.pop(id(module), None)  # the stack that runs now is the last
        call.stacks[id(module)] = Running(mask if isinstance(mask, Tensor) else None, offset, span)
        if states is not None and call.generation is not None:
            call.generation.computed[id(module)] = offset + (span or 0)
        return args, kwargs

    def _refuse_packed(self) -> None:
        """Refuse adapters that would take the sequences of a row for one.

        Raises:
            UnsupportedError: the running call uses one.
        """
        for hooked in self.engine.hooked:
            if (plan := hooked.now()) is None:
                continue
            if isinstance(hooked, (HookedLayer, HookedPrompt)) or "mask" in plan.step.needs:
                acting = ", ".join(sorted(hooked.names & CALL.now.program.names))
                raise UnsupportedError(
                    f"A row holds several sequences (packing, padding-free batches), and {acting} would take them for "
                    "one: it adds positions in front of a row, edits its first and last ones, or averages over it. "
                    "Give one sequence for each row, or use a method that treats all positions alike (docs/trl.md)."
                )

    def _prompts(self) -> list[HookedPrompt]:
        """The places of prompts that have some."""
        return [hooked for hooked in self.engine.masked if isinstance(hooked, HookedPrompt) and hooked.names]

    def prompt_length(self) -> int:
        """Positions that the prompts in force put in front of what the model generates from, and into its cache."""
        encodes = getattr(self.engine.base.config, "is_encoder_decoder", False)
        return 0 if encodes else sum(hooked.length() for hooked in self._prompts())

    # ------------------------------------------------------------------------------------------ recomputation

    def carry(self, layer: Callable[..., Any]) -> Callable[..., Any]:
        """`layer`, made to run under what is in force now, whenever and on whatever thread it runs."""
        forward = CALL.now
        program = forward.program
        if program is None:
            return layer
        facts = copy.copy(forward)
        facts.stacks, facts.reports, facts.losses, facts.replaying = dict(forward.stacks), {}, [], True

        def run(*args: Any, **kwargs: Any) -> Any:
            before = CALL.now
            if before is forward and before.root is facts.root:
                return layer(*args, **kwargs)
            replay = copy.copy(facts)
            replay.outer, replay.losses = before, []
            program.model.open(program)
            CALL.now = replay
            try:
                return layer(*args, **kwargs)
            finally:
                CALL.now = before
                program.model.close(program)

        return run

    # ---------------------------------------------------------------------------------------------- generate

    @contextmanager
    def generation(self, kwargs: dict[str, Any], inputs: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Facts of a `generate` call: inputs are replicated here, once; the given lengths are known to methods."""
        if self.prompt_length():
            _check_cache(kwargs)
        call = CALL.now
        outer = call.generation
        copies = self.engine.programs.in_force().copies
        given = outer is not None and outer.replicated
        if copies > 1 and not given:
            (inputs,), kwargs = replicate((inputs,), kwargs, copies)
        encodes = getattr(self.engine.base.config, "is_encoder_decoder", False)
        mask = None if encodes else longer_mask(kwargs.get("attention_mask"), self.prompt_length())
        call.generation = Generation(copies > 1 or given, self._given_lengths(inputs, kwargs), mask)
        try:
            yield inputs, kwargs
        finally:
            call.generation = outer

    def _given_lengths(self, inputs: Any, kwargs: dict[str, Any]) -> dict[int, int]:
        """Positions that the stacks which generate are given: the first call may see more (assisted decoding)."""
        base: Any = self.engine.base
        if getattr(base.config, "is_encoder_decoder", False):
            start, stack = kwargs.get("decoder_input_ids"), base.get_decoder()
            return {id(stack): 1 if start is None else start.shape[1]}
        named = next((kwargs[n] for n in ("input_ids", "inputs_embeds") if kwargs.get(n) is not None), inputs)
        if not isinstance(named, Tensor):
            return {}
        stacks = {id(hooked.site.stack) for hooked in self.engine.masked}
        return dict.fromkeys(stacks, named.shape[1] + self.prompt_length())


def _computed(stack: nn.Module, states: Any) -> int:
    """How many positions a stack has computed whose cache holds recurrent states, which do not tell it.

    Raises:
        UnsupportedError: nobody has counted them.
    """
    if states is None or not states.has_previous_state():
        return 0
    if (generation := CALL.now.generation) is not None and (count := generation.computed.get(id(stack))) is not None:
        return count
    raise UnsupportedError(
        f"The recurrent states that {type(stack).__name__} is given do not tell how many positions are in them, which "
        "these adapters need to know. Let generate call the model, or give it the whole sequence."
    )


COUNTING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
"""What lets `generate` cut the cache to a number of tokens."""


def _check_cache(kwargs: dict[str, Any]) -> None:
    """Raise UnsupportedError if `generate` would take the positions in a cache for tokens of the sequence."""
    config, cache = kwargs.get("generation_config"), kwargs.get("past_key_values")
    asked = [name for name in COUNTING if (kwargs.get(name) or getattr(config, name, None)) is not None]
    if cache is not None and cache.get_seq_length():
        asked.append("past_key_values")
    if asked:
        raise UnsupportedError(
            f"generate with {' and '.join(asked)} counts tokens by the length of the cache, which holds the prompt of "
            "prompt tuning too. Leave it out: plain sampling, greedy search and beams work, with every kind of cache."
        )


def _packed(numbers: Any, given: dict[str, Any]) -> bool:
    """Whether rows hold several sequences, by the numbers of their positions [B, S] and the lengths of sequences."""
    if given.get("cu_seq_lens_q") is not None:
        return True
    return isinstance(numbers, Tensor) and numbers.dim() == 2 and bool((numbers.diff() < 0).any())


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
