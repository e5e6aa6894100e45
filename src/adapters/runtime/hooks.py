"""The only file that registers hooks: one object per site, which hooks it while an adapter is active there.

Hooks are bound methods of plain objects, so deepcopy and pickle of a model copy them with it. Which adapter runs is
read from a fixed place, never by name: adapters of equal shape share one compiled graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.call import CALL, Positions, Running
from adapters.composition.blocks import Child
from adapters.composition.evaluate import Adapter, Program, build
from adapters.composition.fusion import AdapterFusion
from adapters.errors import CompositionError, UnsupportedError
from adapters.methods.base import AdapterModule
from adapters.methods.bottleneck import Bottleneck
from adapters.methods.invertible import NICE
from adapters.methods.prompt_tuning import PromptTuning
from adapters.methods.state import HiddenState, LinearState, ResidualState
from adapters.runtime import attention
from adapters.runtime.active import ACTIVE, IN_USE, STATIC
from adapters.sites.resolve import (
    AttentionSite,
    EmbeddingSite,
    LayerSite,
    LinearSite,
    NormSite,
    PromptSite,
    ResidualSite,
    Site,
)

SiteT = TypeVar("SiteT", bound=Site)


class AdapterDict(nn.ModuleDict):
    """A ModuleDict in which every adapter name is free: names of methods (`train`, `type`) too."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        self._modules[name] = module  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)


@dataclass(frozen=True)
class Plan:
    """What one set-up does at one site: the hooks it needs and what they call."""

    hooks: tuple[str, ...]
    program: Program
    run: Any


@dataclass(frozen=True)
class Refused:
    """Stands for a program that cannot be: raises the reason when the site is reached."""

    reason: str

    def run(self, *args: Any) -> Any:
        raise CompositionError(self.reason)


class Live(Generic[SiteT]):
    """One site of one model, with the adapters that live there.

    Attributes:
        modules, fusions: What lives here, by name. The modules are children of the model, not of this object.
        plans: Key of a set-up -> its plan here. The one under `STATIC` belongs to the set-up of the model itself.
        suspended: Set while an adapter of this site is merged into the base weights: nothing is hooked.
    """

    site_type: ClassVar[type[Site]]

    def __init__(self, site: SiteT) -> None:
        self.site = site
        self.modules: dict[str, AdapterModule[Any]] = {}
        self.fusions: dict[str, AdapterFusion] = {}
        self.plans: dict[str, Plan | None] = {}
        self.handles: dict[str, Any] = {}
        self.suspended = False

    def check(self) -> None:
        """Raise UnsupportedError if this site cannot carry adapters in this version of the model."""

    def add(self, name: str, module: AdapterModule[Any]) -> None:
        """Let the adapter `name` act here."""
        self.modules[name] = module
        self.plans.clear()

    def remove(self, name: str) -> None:
        """Forget the adapter `name`."""
        self.modules.pop(name, None)
        self.plans.clear()

    def activate(self, key: str, setup: Child) -> None:
        """Make the plan of `setup`, and hook what it needs."""
        if key not in self.plans:
            self.plans[key] = self._plan(setup)

    def set_static(self, key: str, setup: Child) -> None:
        """Make `setup` the one that acts outside of every context, and unhook what no thread needs any more."""
        self.activate(key, setup)
        self.plans[STATIC] = self.plans[key]
        plans = [self.plans.get(k) for k in (STATIC, *IN_USE)]
        needed = [name for plan in plans if plan for name in plan.hooks]
        for name in [name for name in self.handles if name not in needed]:
            self.handles.pop(name).remove()
        for name in needed:
            self._hook(name)

    def hook_all(self, key: str) -> None:
        """Hook what the plan under `key` needs, in addition to what is hooked."""
        if plan := self.plans[key]:
            for name in plan.hooks:
                self._hook(name)

    def unhook(self) -> None:
        """Leave no hook behind."""
        for handle in self.handles.values():
            handle.remove()
        self.handles.clear()

    def current(self) -> Plan | None:
        """The plan in force on this thread."""
        return self.plans.get(ACTIVE.key)

    def _hook(self, name: str) -> None:
        if name not in self.handles and not self.suspended:
            self.handles[name] = self.register(name)

    def _plan(self, setup: Child) -> Plan | None:
        try:
            program = build(setup, self.modules, self.fusions)
        except CompositionError as error:
            program = Refused(str(error))
        return None if program is None else self.plan(program)

    def register(self, name: str) -> Any:
        """Register the hook called `name`."""
        raise NotImplementedError

    def plan(self, program: Program) -> Plan:
        """The plan of a program at this kind of site."""
        raise NotImplementedError


class LiveLinear(Live[LinearSite]):
    """Replaces the output of a linear map."""

    site_type = LinearSite

    def register(self, name: str) -> RemovableHandle:
        return self.site.module.register_forward_hook(self.on_output, prepend=True)

    def plan(self, program: Program) -> Plan:
        run = program.module.forward if isinstance(program, Adapter) else partial(self._run, program)
        return Plan(("output",), program, run)

    @staticmethod
    def _run(program: Program, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = program.run(LinearState(x, y)).result()
        return result

    def on_output(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        plan = self.plans.get(ACTIVE.key)
        return None if plan is None else plan.run(args[0], output)


class LiveNorm(LiveLinear):
    """Replaces the output of a normalisation layer."""

    site_type = NormSite  # type: ignore[assignment]


class LiveResidual(Live[ResidualSite]):
    """Replaces h so that the model's own sum and norm give what the adapters ask for."""

    site_type = ResidualSite

    def register(self, name: str) -> RemovableHandle:
        site = self.site
        if name == "x":
            if site.x_module is None:
                raise UnsupportedError(
                    f"The adapters at {site.path} need the residual input of their block, which this model's "
                    "interface does not name. Set layer_pre_self_attn and layer_pre_ffn, or use double_seq_bn."
                )
            if isinstance(site.x_index, str):
                return site.x_module.register_forward_pre_hook(self.on_named_x, prepend=True, with_kwargs=True)
            return site.x_module.register_forward_pre_hook(self.on_x, prepend=True)
        if name == "h":
            return site.module.register_forward_hook(self.on_h, prepend=True)
        assert site.norm is not None
        if name == "sum":
            return site.norm.register_forward_pre_hook(self.on_sum, prepend=True)
        return site.norm.register_forward_hook(self.on_normed, prepend=True)

    def plan(self, program: Program) -> Plan:
        module = program.module if isinstance(program, Adapter) else None
        if isinstance(module, Bottleneck) and module.plain and not module.config.is_parallel:
            if not module.config.original_ln_before:
                return Plan(("h",), program, module.at_output)
            if self.site.norm is not None and self.site.norm_after:
                return Plan(("sum",), program, module.at_sum)
        hooks = ("x", "h", "normed") if self.site.norm is not None and self.site.norm_after else ("x", "h")
        return Plan(hooks, program, partial(self._run, program))

    def on_x(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        CALL.now.residual = args[self.site.x_index]  # type: ignore[index]

    def on_named_x(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        CALL.now.residual = kwargs[self.site.x_index]  # type: ignore[index]

    def on_sum(self, module: nn.Module, args: tuple[Tensor, ...]) -> Tensor | None:
        plan = self.plans.get(ACTIVE.key)
        return plan.run(args[0]) if plan is not None and "sum" in plan.hooks else None

    def on_h(self, module: nn.Module, args: Any, output: Any) -> Any:
        plan = self.plans.get(ACTIVE.key)
        if plan is None or "h" not in plan.hooks:
            return None
        h = output[0] if isinstance(output, tuple) else output
        new = plan.run(h)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def on_normed(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        call = CALL.now
        override, call.override = call.override, None
        return override

    def _run(self, program: Program, h: Tensor) -> Tensor:
        call = CALL.now
        x, call.residual = call.residual, None
        assert x is not None
        norm = self.site.norm
        state: ResidualState = program.run(ResidualState(h, x, None if norm is None else norm.forward))
        out = state.h if state.aside is None else state.h + state.aside
        if state.last is None or state.last.config.original_ln_after:
            return out
        if norm is None or not self.site.norm_after:
            return out - x
        call.override = out
        return h


class LiveAttention(Live[AttentionSite]):
    """Prepends keys and values in the attention function that the model calls."""

    site_type = AttentionSite

    def check(self) -> None:
        attention.check(self.site.module)

    def register(self, name: str) -> Any:
        if name == "hidden":
            return self.site.module.register_forward_pre_hook(self.on_input, prepend=True, with_kwargs=True)
        return attention.intercept(self.site.module, self)

    def plan(self, program: Program) -> Plan:
        gated = any(getattr(module.config, "use_gating", False) for module in self.modules.values())
        if isinstance(program, Adapter) and not gated:
            prefix: Any = program.module
            return Plan(("attention",), program, partial(attention.attend_prefix, prefix.key_values))
        return Plan(
            ("attention", "hidden") if gated else ("attention",), program, partial(attention.attend, program.run)
        )

    def on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        CALL.now.hidden = args[0] if args else kwargs["hidden_states"]

    def attend(self, function: Any, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Call the attention function with what the active adapters prepend."""
        plan = self.plans.get(ACTIVE.key)
        if plan is None:
            return function(module, *args, **kwargs)  # type: ignore[no-any-return]
        return plan.run(attention.Attention(self.site, function, module, kwargs), *args)  # type: ignore[no-any-return]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        attention.install()


class LiveLayer(Live[LayerSite]):
    """Replaces the output of a layer."""

    site_type = LayerSite

    def register(self, name: str) -> RemovableHandle:
        return self.site.module.register_forward_hook(self.on_output, prepend=True)

    def plan(self, program: Program) -> Plan:
        run = program.module.forward if isinstance(program, Adapter) else partial(self._run, program)
        return Plan(("output",), program, run)

    @staticmethod
    def _run(program: Program, *state: Any) -> Tensor:
        return program.run(HiddenState(*state)).h  # type: ignore[no-any-return]

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        plan = self.plans.get(ACTIVE.key)
        if plan is None:
            return None
        h = output[0] if isinstance(output, tuple) else output
        new = plan.run(h, *attended_positions(h, self.site.stack))
        return (new, *output[1:]) if isinstance(output, tuple) else new


def attended_positions(h: Tensor, stack: nn.Module) -> Positions:
    """(first, end, offset, length) of a `HiddenState` h [B, S, D] of a stack, from its attention mask and cache.

    While generating, the sequence ends where it ended when the stack ran first.
    """
    running = CALL.now.stacks.get(id(stack)) or Running()
    shape = h.shape[0], h.shape[1]
    if (known := running.positions.get(shape)) is None:
        known = running.positions[shape] = _attended_positions(shape, running, id(stack))
    return known


def _attended_positions(shape: tuple[int, int], running: Running, stack: int) -> Positions:
    call, rows, mask, offset = CALL.now, shape[0], running.mask, running.offset
    end = offset + shape[1]
    if call.prompts is not None:
        end = min(end, call.prompts.setdefault(stack, end))
        if mask is None or mask.dim() != 2:  # a static cache comes with masks of other forms
            mask = call.prompt_mask
    if mask is None or mask.dim() != 2:
        return None, None, offset, end
    attended = mask[:, :end].bool()
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(attended.all()):
        return None, None, offset, end  # elsewhere it would take longer to look than to go on
    if rows != len(attended):
        copies = rows // len(attended)
        attended = attended.repeat(copies, 1) if call.copies else attended.repeat_interleave(copies, 0)
    first = attended.int().argmax(1, keepdim=True)
    count = attended.sum(1, keepdim=True)
    return first, first + count, offset, end


class LiveEmbedding(Live[EmbeddingSite]):
    """Passes token embeddings through a bijection, and undoes it before the output embedding."""

    site_type = EmbeddingSite
    outputs: tuple[nn.Module, ...] = ()
    """Output embedding layers, before which the inverse is applied."""

    def register(self, name: str) -> RemovableHandle:
        if name.startswith("inverse"):
            module = self.outputs[int(name.partition(":")[2])]
            return module.register_forward_pre_hook(self.on_output_embedding, prepend=True)
        if self.site.index is None:
            return self.site.module.register_forward_hook(self.on_output, prepend=True)
        if isinstance(self.site.index, str):
            return self.site.module.register_forward_pre_hook(self.on_named_input, prepend=True, with_kwargs=True)
        return self.site.module.register_forward_pre_hook(self.on_input, prepend=True)

    def plan(self, program: Program) -> Plan:
        inverses = tuple(f"inverse:{i}" for i in range(len(self.outputs)))
        return Plan(("embedding", *inverses), program, program.run)

    def on_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        plan = self.current()
        return None if plan is None else plan.run(HiddenState(output)).h

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        plan, i = self.current(), self.site.index
        if plan is None or not isinstance(i, int):
            return None
        return (*args[:i], plan.run(HiddenState(args[i])).h, *args[i + 1 :])

    def on_named_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan, name = self.current(), self.site.index
        if plan is None or not isinstance(name, str):
            return None
        return args, {**kwargs, name: plan.run(HiddenState(kwargs[name])).h}

    def on_output_embedding(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        plan = self.current()
        if plan is None:
            return None
        return (self._inverse(plan.program, args[0]), *args[1:])

    def _inverse(self, program: Program, h: Tensor) -> Tensor:
        return invert(program).run(HiddenState(h)).h  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Inverse:
    """Runs a bijection backwards."""

    module: NICE

    def run(self, state: HiddenState) -> HiddenState:
        return replace(state, h=self.module(state.h, rev=True))


def invert(program: Program) -> Program:
    """The program that undoes a program of bijections: each adapter replaced by its inverse."""
    if isinstance(program, Adapter):
        assert isinstance(program.module, NICE)
        return Inverse(program.module)
    children = tuple(None if child is None else invert(child) for child in program.children)  # type: ignore[attr-defined]
    return replace(program, children=children)  # type: ignore[type-var]


class LivePrompt(Live[PromptSite]):
    """Lengthens the embedded sequence, and the attention mask with it."""

    site_type = PromptSite

    def register(self, name: str) -> RemovableHandle:
        return self.site.module.register_forward_hook(self.on_output, prepend=True)

    def plan(self, program: Program) -> Plan:
        return Plan(("prompt",), program, program.run)

    def on_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        plan = self.current()
        running = CALL.now.stacks.get(id(self.site.stack))
        if plan is None or (running is not None and running.offset):
            return None
        return plan.run(HiddenState(output)).h  # type: ignore[no-any-return]

    def length(self) -> int:
        """Positions that the active prompts add."""
        plan = self.current()
        return 0 if plan is None else prompt_length(plan.program)


def prompt_length(program: Program) -> int:
    """Positions that a program of prompts adds."""
    if isinstance(program, Adapter):
        assert isinstance(program.module, PromptTuning)
        return int(program.module.config.prompt_length)
    return max(prompt_length(child) for child in program.children if child is not None)  # type: ignore[attr-defined]


LIVE: tuple[type[Live[Any]], ...] = (
    LiveLinear,
    LiveNorm,
    LiveResidual,
    LiveAttention,
    LiveLayer,
    LiveEmbedding,
    LivePrompt,
)


def enliven(sites: list[Site]) -> Iterator[Live[Any]]:
    """A live object for every site."""
    kinds = {live.site_type: live for live in LIVE}
    for site in sites:
        yield kinds[type(site)](site)
