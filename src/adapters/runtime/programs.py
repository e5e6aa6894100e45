"""Activating a set-up makes one immutable program; a call follows one program from its beginning to its end.

A program is made of a set-up and of the adapters it names as they are at that moment. Whoever adds, loads, merges or
deletes an adapter makes programs stale: later calls get new ones, running calls keep what they hold, and hooks stay
where a running call needs them.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import torch
from torch import nn

from adapters.call import CALL
from adapters.composition.owned import OwnedLayer
from adapters.errors import AdapterError, CompositionError, MergeError
from adapters.methods.derived import Watch
from adapters.methods.parts import Watching
from adapters.runtime.active import IN_USE, INNERMOST, LOCK, REGISTRIES, AdapterSetup, Setup, innermost
from adapters.runtime.hooks import HookedSite, Pin, Plan
from adapters.runtime.mixing import Pools
from adapters.sites.layers import require_layers

if TYPE_CHECKING:
    from adapters.runtime.engine import Engine

MOST_BLOCKS, MOST_NAMES = 32, 256
"""Programs that are kept of blocks of several adapters (they may hold stacked copies of weights), and of others."""

WAIT = 60.0
"""Seconds that a merge waits for the calls of other threads to end."""

_numbers = itertools.count()


@dataclass(eq=False)
class Program:
    """What one set-up means in one model at one moment. Never changed, but for `stale` and `served`.

    Attributes:
        model: Programs of the model.
        setup: The block, None for no adapters.
        skipped: Layers in which no adapter acts.
        plans: What it does at each site, None where nothing.
        taps: (number of the site, tap): the hooks it needs.
        names: The adapters that it names, and what its blocks own, as `Parts.key` has it.
        first_layer: The lowest layer it adapts.
        copies: How often it needs every row of the input.
        pins: What holds as long as nobody has replaced a dictionary of adapters, or an output embedding behind them.
        watch: Looks after what is derived from the weights of its adapters.
        watching: Whether somebody watches a module of its adapters, or of what its blocks own.
        stale: Whether an adapter that it names has changed since: later calls must not begin with it.
        served: The sweep of hooks since which all its hooks are registered.
    """

    model: Programs
    setup: Setup
    skipped: tuple[int, ...]
    plans: tuple[Plan | None, ...]
    taps: frozenset[tuple[int, str]]
    names: frozenset[str]
    first_layer: int | None
    copies: int
    pins: tuple[Pin, ...]
    watching: Watching
    watch: Watch = field(default_factory=Watch)
    stale: bool = False
    served: int = -1

    def holds(self) -> bool:
        """Whether the dictionaries of its adapters are where they were."""
        return all([children.get(name) is child for children, name, child in self.pins])  # noqa: C419  (faster)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "watch": Watch()}


class Programs:
    """The programs of one model.

    Attributes:
        number: Stands for the model in `AdapterSetup.programs`.
        default: The program outside of every `AdapterSetup`.
        taps, mark: The hooks at sites that are registered, and a text that stands for them.
        lock: Guards the adapters of the model and its hooks.
        pools: The programs of batches whose rows have adapters of their own.
        running: How many calls follow each program at the moment, on any thread.
    """

    default: Program

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._start()

    def _start(self) -> None:
        self.number = next(_numbers)
        self.lock = threading.Condition(threading.RLock())
        self.running: Counter[Program] = Counter()
        self._kept: OrderedDict[tuple[Setup, tuple[int, ...]], Program] = OrderedDict()
        self.pools = Pools(self)
        self._built: WeakSet[Program] = WeakSet()
        self._sweeps, self._late, self._closed_for_calls = 0, False, False
        self._hooks(frozenset())
        with LOCK:
            REGISTRIES.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"engine": self.engine, "default": self.default}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()
        self._built.add(self.default)

    # ------------------------------------------------------------------------------------------------ finding

    def in_force(self) -> Program:
        """The program that a call which begins now follows.

        Raises:
            AdapterNameError: the `AdapterSetup` in force names an adapter that the model lacks.
            CompositionError: it cannot mean anything in this model.
        """
        if torch.compiler.is_compiling():
            mixture, setup = CALL.now.next_mixture, INNERMOST.setup
            if mixture is not None and mixture.holds(self):
                return cast(Program, mixture.program)
            program = self.default if setup is None else setup.programs.get(self.number)
            if program is None:
                raise CompositionError("The AdapterSetup in force names an adapter that this model does not have.")
            return program
        mixture = CALL.now.next_mixture
        if mixture is not None and mixture.holds(self):
            if mixture.program.stale:
                mixture.renew()
                CALL.now.assignment = mixture.assignment
            return cast(Program, mixture.program)
        setup = innermost()
        if setup is None:
            return self.default
        program = setup.programs.get(self.number)
        if program is None or program.stale:
            program = setup.programs[self.number] = self.of(setup.adapter_setup)
        return program

    def prepare(self, setup: AdapterSetup) -> None:
        """Make the program of a set-up that was entered, if the model has its adapters (others may come later)."""
        with self.lock:
            block = setup.adapter_setup
            if block is not None and not block.flatten() <= self.engine.parts.keys():
                setup.programs.pop(self.number, None)
                return
            try:
                program = setup.programs[self.number] = self.of(block)
            except AdapterError:
                setup.programs.pop(self.number, None)
            else:
                self.serve(program)

    def of(self, setup: Setup, skipped: tuple[int, ...] = ()) -> Program:
        """The program of a set-up, made unless it is known. Raises as `in_force`."""
        with self.lock:
            key = setup, skipped
            program = self._kept.get(key)
            if program is None:
                program = self._kept[key] = self.made(setup, skipped)
                self._forget(program)
            else:
                self._kept.move_to_end(key)
            return program

    def made(self, setup: Setup, skipped: tuple[int, ...] = ()) -> Program:
        """A new program of a set-up, which whoever asks for it keeps. Raises as `in_force`."""
        program = self._build(setup, skipped)
        self._built.add(program)
        return program

    def _forget(self, new: Program) -> None:
        """Give up the programs that were asked for longest ago: a server that mixes batches meets ever new blocks."""
        several = len(new.names) > 1
        old = [key for key, program in self._kept.items() if (len(program.names) > 1) == several]
        for key in old[: max(0, len(old) - (MOST_BLOCKS if several else MOST_NAMES))]:
            del self._kept[key]

    def set_default(self, setup: Setup, skipped: Iterable[int] = ()) -> None:
        """Let calls outside of every `AdapterSetup` follow `setup`, and unhook what nobody needs any more."""
        with self.lock:
            self.default = self.of(setup, tuple(sorted(set(skipped))))
            self.pools.rest()
            self.serve(self.default)
            self.sweep()

    def changed(self, names: Iterable[str], replaced: bool = False) -> None:
        """Make programs new that are not what they were any more.

        Args:
            names: What has changed, as `Parts.key` has it.
            replaced: Whether dictionaries of adapters may have been replaced too.
        """
        changed = set(names)
        with self.lock, LOCK:
            for program in self._built:
                if not changed.isdisjoint(program.names) or (replaced and not program.holds()):
                    program.stale = True
            self._kept = OrderedDict((key, program) for key, program in self._kept.items() if not program.stale)
            self.pools.drop_stale()
            if self.default.stale:
                self.default = self.of(self.default.setup, self.default.skipped)
            self.serve(self.default)
            for setup in [setup for setup in IN_USE if not setup.empty]:
                known = setup.programs.get(self.number)
                if known is None or known.stale:
                    self.prepare(setup)
            self.sweep()

    # ------------------------------------------------------------------------------------------------- making

    def _build(self, setup: Setup, skipped: tuple[int, ...]) -> Program:
        engine = self.engine
        names = set() if setup is None else setup.flatten()
        keys = set(names)
        engine.check_merged(setup, engine.merged)
        modules: dict[HookedSite[Any], dict[str, Any]] = {}
        layers: dict[HookedSite[Any], dict[str, dict[tuple[str, str], OwnedLayer]]] = {}
        pins: list[Pin] = []
        watched: list[nn.Module] = []
        for name in sorted(names):
            engine.require(name)
            for part in engine.parts[name]:
                watched.append(part.module)
                if part.hooked is not None and part.layer not in skipped and not engine.is_merged(name, part):
                    pin, modules.setdefault(part.hooked, {})[name] = part.hang()
                    pins.append(pin)
        for owned in engine.owned.values():
            for name in owned.names_in(setup):
                keys.add(owned.key(name))
                config = owned.register.config_of(name)
                for part in owned[name]:
                    assert part.hooked is not None
                    pin, module = part.hang()
                    watched.append(module)
                    own = layers.setdefault(part.hooked, {}).setdefault(part.tap, {})
                    own[owned.kind.noun, name] = OwnedLayer(module, config)
                    pins.append(pin)
        plans: list[Plan | None] = [None] * len(engine.hooked)
        for hooked, there in modules.items():
            plans[hooked.number] = hooked.plan(setup, there, layers.get(hooked, {}))
            pins += hooked.pins()
        numbers = [hooked.site.layer for hooked in modules if plans[hooked.number] is not None]
        return Program(
            self,
            setup,
            skipped,
            tuple(plans),
            frozenset((number, tap) for number, plan in enumerate(plans) if plan is not None for tap in plan.taps),
            frozenset(keys),
            min(numbers, default=None),
            1 if setup is None else setup.parallel_channels,
            tuple({(id(children), name): (children, name, child) for children, name, child in pins}.values()),
            Watching(*watched),
        )

    def check_layers(self, layers: Iterable[int], what: str) -> None:
        """Raise ConfigError if a number is not that of a layer of this model."""
        require_layers(layers, self.engine.sites, what)

    # --------------------------------------------------------------------------------------------------- hooks

    def serve(self, program: Program) -> None:
        """Register all hooks that a program needs."""
        if program.served != self._sweeps:
            for number, tap in program.taps:
                self.engine.hooked[number].hook(tap)
            self.engine.replication.serve(program)
            program.served = self._sweeps
            self._hooks(self.taps | program.taps)

    def _hooks(self, taps: frozenset[tuple[int, str]]) -> None:
        """Note which hooks there are: compiled code has guards on texts, and none on hooks."""
        self.taps, self.mark = taps, str(hash(taps))

    def sweep(self) -> None:
        """Unhook what neither the model's own program, nor one that was entered, nor a running call needs."""
        with self.lock:
            with LOCK:
                entered = [setup.programs.get(self.number) for setup in IN_USE]
            entered += self.pools.serving()
            needed = self.default.taps.union(*(program.taps for program in entered if program is not None))
            kept = needed.union(*(program.taps for program in self.running))
            self._late = len(kept) > len(needed)
            gone = False
            for hooked in self.engine.hooked:
                if hooked.handles:
                    for tap in [tap for tap in hooked.handles if (hooked.number, tap) not in kept]:
                        hooked.unhook(tap)
                        gone = True
            if gone:
                self._sweeps += 1
                self._hooks(self.taps & kept)

    # --------------------------------------------------------------------------------------------------- calls

    def open(self, program: Program) -> None:
        """Let a call begin: its hooks are there until it ends."""
        with self.lock:
            while self._closed_for_calls and not _calls_here(self):
                self.lock.wait()
            self.running[program] += 1
            if program.served != self._sweeps:  # swept away already: a call that came late, or a recomputation
                self.serve(program)
                self._late = True

    def close(self, program: Program) -> None:
        """Let a call end."""
        with self.lock:
            self.running[program] -= 1
            if self.running[program] <= 0:
                del self.running[program]
                if self._late:
                    self.sweep()
                if self._closed_for_calls:
                    self.lock.notify_all()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Wait until no call runs, and let none begin meanwhile: for changes of the base model's own weights.

        Raises:
            MergeError: this thread is in the middle of a call, or one of another thread does not end.
        """
        if _calls_here(self):
            raise MergeError("Base weights cannot change in the middle of a forward call of the model. Do it before.")
        with self.lock:
            self._closed_for_calls = True
            try:
                if not self.lock.wait_for(lambda: not self.running, WAIT):
                    raise MergeError(f"Calls of this model on other threads did not end within {WAIT:.0f} seconds.")
                yield
            finally:
                self._closed_for_calls = False
                self.lock.notify_all()


def _calls_here(programs: Programs) -> bool:
    """Whether this thread is inside of a call of the model."""
    program = CALL.now.program
    return program is not None and program.model is programs
