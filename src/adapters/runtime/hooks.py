"""The only file that registers hooks: one object per site, which serves the taps that a program needs there.

Hooks are bound methods of plain objects, so deepcopy and pickle of a model copy them with it. What runs is asked of the
call: it follows one program from its beginning to its end. Under `torch.compile` adapters of equal shape share one
graph, because a plan is found by the number of its site, never by a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapters.call import CALL, Positions, Running
from adapters.composition.blocks import Child
from adapters.composition.evaluate import build
from adapters.composition.owned import Layers
from adapters.composition.steps import Adapter, Averaged, RowChoice, Step
from adapters.errors import CompositionError, UnsupportedError
from adapters.methods.base import AdapterModule
from adapters.methods.state import HiddenState, LinearState, ResidualState
from adapters.runtime import attention, experts, prompts, softmax
from adapters.sharding import is_evenly_split, is_planned, is_split, own_features, whole_features
from adapters.sites.linear import is_linear
from adapters.sites.site import (
    AttentionSite,
    EmbeddingSite,
    ExpertsSite,
    LayerSite,
    LinearSite,
    NormSite,
    PromptSite,
    ResidualSite,
    Site,
    TableSite,
)
from adapters.sites.spec import Turn

if TYPE_CHECKING:
    from adapters.runtime.programs import Programs

Pin = tuple[dict[str, Any], str, nn.Module]
"""(children of a module, name, child)."""

EXTENT = "extent"
"""The tap that notes what the layer of a site is given: its rows and positions."""

SiteT = TypeVar("SiteT", bound=Site)
Modules = Mapping[str, AdapterModule[Any]]
ByTap = Mapping[str, Layers]
"""What blocks own at a site, by the tap of the adapters that it combines."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What one program does at one site.

    Attributes:
        taps: The hooks it needs.
        step: The adapters that act here, as they are arranged.
        run: What the main tap calls.
        before: What the tap in front of it calls, where both are needed; what is called in place of `run` where a model
            that computes attention itself calls scaled_dot_product_attention.
    """

    taps: tuple[str, ...]
    step: Step
    run: Any
    before: Any = None


class OneCall:
    """Lets a hook act in call `number` of the `calls` that its module has in one forward of the layer."""

    def __init__(self, hook: Any, number: int, calls: int) -> None:
        self.hook, self.number, self.calls = hook, number, calls
        self.__func__ = hook.__func__

    def __call__(self, *args: Any) -> Any:
        turns = CALL.now.turns
        turn = turns[id(self)] = turns.get(id(self), -1) + 1
        return self.hook(*args) if turn % self.calls == self.number else None


class HookedSite(Generic[SiteT]):
    """One site of one model, and its hooks.

    Attributes:
        site: The place.
        number: Its index in the model's list of sites: programs keep their plans by it.
        programs: What the model can follow.
        names: The adapters that have a module here, and what blocks own here, as `Parts.key` has it.
        handles: Tap -> what removes its hook.
    """

    site_type: ClassVar[type[Site]]

    def __init__(self, site: SiteT, number: int, programs: Programs) -> None:
        self.site, self.number, self.programs = site, number, programs
        self.names: set[str] = set()
        self.handles: dict[str, Any] = {}

    def now(self) -> Plan | None:
        """What the running call does here. Outside of calls (a submodule is called): what is in force."""
        program = CALL.now.program
        if program is None or program.model is not self.programs:
            CALL.now.unwatched = False
            program = self.programs.in_force()
        return program.plans[self.number]  # type: ignore[no-any-return]

    def plan(self, setup: Child, modules: Modules, layers: ByTap) -> Plan | None:
        """What `setup` does here with these modules; None if nothing.

        Raises:
            CompositionError: it cannot mean anything here.
        """
        step = build(setup, modules, layers.get("output", {}))
        return None if step is None else self.planned(step)

    def planned(self, step: Step) -> Plan:
        """The plan of a step at this kind of site."""
        raise NotImplementedError

    def hook(self, tap: str) -> None:
        """Serve a tap, if it is not served yet. Only under the lock of `programs`."""
        if tap not in self.handles:
            handle = self._on_layer() if tap == EXTENT else self.register(tap)
            if tap != EXTENT and (turn := self.turn(tap)) is not None:
                hooks: Any = handle.hooks_dict_ref()
                hooks[handle.id] = OneCall(hooks[handle.id], *turn)
            self.handles[tap] = in_order(handle)

    def pins(self) -> Iterator[Pin]:
        """Where modules hang that its plans refer to beside the site's own."""
        yield from ()

    def turn(self, tap: str) -> Turn | None:
        """In which call of the hooked module a tap is, if not in all."""
        return self.site.call

    def unhook(self, tap: str) -> None:
        """Serve a tap no longer."""
        if (handle := self.handles.pop(tap, None)) is not None:
            handle.remove()

    def rows_first(self, x: Tensor) -> Tensor:
        """What adapters are given of a tensor of the module: [B, S, D]."""
        if self.site.layout == "flat":
            return x.reshape(CALL.now.extent[0] if CALL.now.extent else 1, -1, x.shape[-1])  # alone it is one row
        return x.transpose(0, 1) if self.site.layout == "sequence" else x

    def as_before(self, new: Tensor, x: Tensor) -> Tensor:
        """What the module gets back in place of x: what adapters gave, as x lay."""
        if self.site.layout == "sequence":
            return new.transpose(0, 1)
        return new if new.dim() == x.dim() else new.reshape(x.shape)

    def taps(self, *names: str) -> tuple[str, ...]:
        """These taps, and what they need to know rows and positions."""
        return (*names, EXTENT) if self.site.layout == "flat" else names

    def _on_layer(self) -> RemovableHandle:
        assert self.site.layer_module is not None
        return self.site.layer_module.register_forward_pre_hook(self.on_layer, with_kwargs=True)

    def on_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = next(one for one in (*args, *kwargs.values()) if isinstance(one, Tensor))
        CALL.now.extent = states.shape[0], states.shape[1]

    def register(self, tap: str) -> Any:
        """Register the hook that serves a tap."""
        raise NotImplementedError


class HookedLinear(HookedSite[LinearSite]):
    """Replaces the output of a linear map, or what it reads.

    Adapters see rows of positions, [B, S, D]: where a map reads vectors [B, D], as poolers do, S is 1.
    """

    site_type = LinearSite

    def register(self, tap: str) -> RemovableHandle:
        if tap == "input":
            return self.site.module.register_forward_pre_hook(self.on_input, prepend=True)
        return self.site.module.register_forward_hook(self.on_output, prepend=True)

    def plan(self, setup: Child, modules: Modules, layers: ByTap) -> Plan | None:
        """As for every site; adapters of the input and of the output are arranged apart.

        Raises:
            UnsupportedError: the tp_plan of the model splits this module in a way that adapters cannot follow.
        """
        if is_planned(self.site.module) and not self.is_followed():
            raise refused_split(self.site)
        plans = []
        for tap in ("input", "output"):
            there = {name: module for name, module in modules.items() if module.tap == tap}
            step = build(setup, there, layers.get(tap, {})) if there else None
            plans.append(
                None if step is None else Plan(self.taps(tap), step, _alone(step) or partial(self._runs[tap], step))
            )
        before, after = plans
        if before is None or after is None:
            return before or after
        return Plan(self.taps("input", "output"), after.step, after.run, before.run)

    @staticmethod
    def _run(step: Step, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = step.run(LinearState(x, y)).result()
        return result

    @staticmethod
    def _run_input(step: Step, x: Tensor) -> Tensor:
        return step.run(HiddenState(x)).h  # type: ignore[no-any-return]

    _runs: ClassVar[Mapping[str, Any]] = {"input": _run_input.__func__, "output": _run.__func__}  # type: ignore[attr-defined]

    def on_input(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        plan = self.now()
        if plan is None or "input" not in plan.taps:
            return None
        whole = self.read(args[0])
        run, x = plan.run if plan.before is None else plan.before, self.rows_first(whole)
        new = run(x) if x.dim() == 3 else run(_as_rows(x)).reshape(x.shape)
        return (own_features(self.as_before(new, whole), args[0].shape[-1], self.weight), *args[1:])

    def on_output(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        plan = self.now()
        if plan is None or "output" not in plan.taps:
            return None
        read, written = self.read(args[0]), self.written(output)
        x, y = self.rows_first(read), self.rows_first(written)
        if y.dim() == 3:
            new = self.as_before(plan.run(x, y), written)
        else:
            new = plan.run(_as_rows(read), _as_rows(written)).reshape(written.shape)
        return own_features(new, output.shape[-1], self.weight)

    def is_followed(self) -> bool:
        """Whether what is split can be put together here, and taken apart."""
        return is_evenly_split(self.site.module)

    @property
    def weight(self) -> Any:
        """The parameter by which a process finds its part, where the module is spread over several."""
        return self.site.module._parameters.get("weight")

    def read(self, x: Tensor) -> Tensor:
        """What the module is given, [..., I]; of a module that is spread over processes all of it."""
        return whole_features(x, self.site.in_features, self.weight)

    def written(self, y: Tensor) -> Tensor:
        """What the module returns, [..., O]; of a module that is spread over processes all of it."""
        return whole_features(y, self.site.out_features, self.weight)


def _as_rows(x: Tensor) -> Tensor:
    """What adapters are given, [B, S, I], of [B, I] or [B, ..., S, I]."""
    return x.reshape(x.shape[0] if x.dim() > 1 else 1, -1, x.shape[-1])


class HookedWhole(HookedLinear):
    """A module that every process has all of, or none of its adapters: where a tp_plan splits it, they are refused."""

    def is_followed(self) -> bool:
        return False

    def read(self, x: Tensor) -> Tensor:
        return x

    def written(self, y: Tensor) -> Tensor:
        return y


class HookedNorm(HookedWhole):
    """Replaces the output of a normalisation layer."""

    site_type = NormSite  # type: ignore[assignment]


class HookedTable(HookedWhole):
    """Replaces what a table of embeddings gives, and for some methods what an output embedding makes with its weights.

    Attributes:
        outputs: The output embeddings that read the table's weights, as far as plans needed them.
    """

    site_type = TableSite

    def __init__(self, site: TableSite, number: int, programs: Programs) -> None:
        super().__init__(site, number, programs)
        self.outputs: list[nn.Module] = []

    def register(self, tap: str) -> RemovableHandle:
        if tap.startswith("tied:"):
            module = self.outputs[int(tap.partition(":")[2])]
            return module.register_forward_hook(self.on_tied, prepend=True)
        return super().register(tap)

    def plan(self, setup: Child, modules: Modules, layers: ByTap) -> Plan | None:
        plan = super().plan(setup, modules, layers)
        if plan is not None and self.site.role != "embed" and not isinstance(plan.step, Adapter | Averaged):
            raise CompositionError(
                f"{setup!r} cannot act at {self.site.path}, whose numbers are not those of the rows of a batch. Use "
                "one adapter or Average there, or let the adapters leave it out (places)."
            )
        own = {name: module for name, module in modules.items() if module.acts_tied and name not in self._before()}
        tied = build(setup, own, {}) if own else None
        taps = [f"tied:{number}" for number in self._tied()] if tied is not None else []
        if plan is None or tied is None or not taps:
            return plan
        return Plan((*plan.taps, *taps), plan.step, plan.run, partial(self._run, tied))

    def _engine(self) -> Any:
        """The engine of the model; None where a plan is only tried (`inspection.py`)."""
        return getattr(self.programs, "engine", None)

    def _before(self) -> set[str]:
        """The adapters at tables before this one that have the same weights: they serve what is tied to both."""
        engine = self._engine()
        before = engine.hooked[: self.number] if engine is not None else []
        same = [hooked for hooked in before if isinstance(hooked, HookedTable)]
        return set().union(*(h.names for h in same if h.site.module.weight is self.site.module.weight))

    def _tied(self) -> list[int]:
        """The numbers of the output embeddings, in `outputs`, that read the weights of the table now."""
        engine, numbers = self._engine(), []
        for module in engine.root.modules() if engine is not None else ():
            if getattr(module, "weight", None) is self.site.module.weight and is_linear(module):
                if not any(module is known for known in self.outputs):
                    self.outputs.append(module)
                numbers.append(next(i for i, known in enumerate(self.outputs) if known is module))
        return numbers

    def on_output(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        return super().on_output(module, (args[0][..., None],), output)

    def on_tied(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        plan = self.now()
        if plan is None or plan.before is None:
            return None
        return plan.before(_as_rows(args[0]), _as_rows(output)).reshape(output.shape)  # type: ignore[no-any-return]


class HookedExperts(HookedSite[ExpertsSite]):
    """Changes the weights with which a module of experts multiplies, while it runs."""

    site_type = ExpertsSite

    def register(self, tap: str) -> Any:
        return experts.Serving(self)

    def plan(self, setup: Child, modules: Modules, layers: ByTap) -> Plan | None:
        """As for every site. UnsupportedError where the experts are spread over processes."""
        if is_split(self.site.module):
            raise refused_split(self.site)
        return super().plan(setup, modules, layers)

    def planned(self, step: Step) -> Plan:
        return Plan(("weights", EXTENT) if experts.divides(step) else ("weights",), step, None)


def refused_split(site: Site) -> UnsupportedError:
    """The error for a place that a tp_plan splits in a way that adapters cannot follow."""
    return UnsupportedError(
        f"The tp_plan of this model splits {site.path} over processes in a way that adapters cannot follow: only "
        "linear maps with whole rows or columns (colwise, rowwise) can be put together again. Leave this place out of "
        "the adapter's places, or load the model without tp_plan."
    )


def _alone(step: Step) -> Any:
    """The function of an adapter that acts alone, if it has one; or of those that rows have alone."""
    direct = step.direct() if isinstance(step, Adapter | RowChoice) else None
    return None if direct is None else direct[1]


class HookedResidual(HookedSite[ResidualSite]):
    """Replaces h so that the model's own sum and norm give what the adapters ask for."""

    site_type = ResidualSite

    def register(self, tap: str) -> RemovableHandle:
        site = self.site
        if tap == "x":
            if site.x_module is None:
                raise UnsupportedError(
                    f"The adapters at {site.path} need the residual input of their block, which this model's "
                    "interface does not name. Set layer_pre_self_attn and layer_pre_ffn, or use other adapters."
                )
            if isinstance(site.x_index, str):
                return site.x_module.register_forward_pre_hook(self.on_named_x, prepend=True, with_kwargs=True)
            return site.x_module.register_forward_pre_hook(self.on_x, prepend=True)
        if tap == "beside":
            assert site.beside is not None
            return site.beside.register_forward_hook(self.on_beside, prepend=True)
        if tap == "h":
            return site.module.register_forward_hook(self.on_h, prepend=True)
        assert site.norm is not None
        if tap == "sum":
            return site.norm.register_forward_pre_hook(self.on_sum, prepend=True)
        return site.norm.register_forward_hook(self.on_normed, prepend=True)

    def turn(self, tap: str) -> Turn | None:
        site = self.site
        return {"x": site.x_call, "beside": site.beside_call, "h": site.call}.get(tap, site.norm_call)

    def planned(self, step: Step) -> Plan:
        direct = step.direct() if isinstance(step, Adapter | RowChoice) else None
        taps = self.taps("x", "h") if self.site.beside is None else self.taps("x", "beside", "h")
        if direct is not None and (direct[0] == "sum" or not self.site.swapped):
            tap, function = direct
            return (
                Plan(taps, step, partial(self._run_branch, function))
                if tap == "branch"
                else Plan(self.taps(tap), step, function)
            )
        normed = ("normed",) if self.site.norm is not None and self.site.norm_after else ()
        return Plan((*taps, *normed), step, partial(self._run, step))

    def on_x(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        CALL.now.residual = self.rows_first(args[self.site.x_index])  # type: ignore[index]

    def on_named_x(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        CALL.now.residual = self.rows_first(kwargs[self.site.x_index])  # type: ignore[index]

    def on_beside(self, module: nn.Module, args: Any, output: Any) -> None:
        call, added = CALL.now, output[0] if isinstance(output, tuple) else output
        assert call.residual is not None
        call.residual = call.residual + self.rows_first(added)  # in place it would change the stream itself

    def on_sum(self, module: nn.Module, args: tuple[Tensor, ...]) -> Tensor | None:
        plan = self.now()
        if plan is None or "sum" not in plan.taps:
            return None
        return self.as_before(plan.run(self.rows_first(args[0])), args[0])

    def on_h(self, module: nn.Module, args: Any, output: Any) -> Any:
        plan = self.now()
        if plan is None or "h" not in plan.taps:
            return None
        given = output[0] if isinstance(output, tuple) else output
        h, scale, x = self.rows_first(given), self.site.scale, CALL.now.residual
        if x is not None and h.dim() < x.dim():  # flat in a model that was looked at with one row
            h = h.view(x.shape)
        new = plan.run(h) if scale == 1 else plan.run(h * scale) / scale
        new = self.as_before(new, given)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def on_normed(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        call = CALL.now
        override, call.override = call.override, None
        return None if override is None else self.as_before(override, output)

    @staticmethod
    def _run_branch(function: Any, h: Tensor) -> Tensor:
        return function(h, CALL.now.residual)  # type: ignore[no-any-return]

    def _run(self, step: Step, h: Tensor) -> Tensor:
        call = CALL.now
        x = call.residual  # kept: an attention and a feed-forward block beside it have the same
        assert x is not None
        norm, swapped = self.site.norm, self.site.swapped
        given = (x, h) if swapped else (h, x)
        state: ResidualState = step.run(ResidualState(*given, None if norm is None else norm.forward))
        out = state.h if state.aside is None else state.h + state.aside
        if state.last is None or state.last.norm_after:
            return out + h - x if swapped else out  # the model adds x
        if norm is None or not self.site.norm_after:
            return out - x
        call.override = out
        return h


class HookedAttention(HookedSite[AttentionSite]):
    """Prepends keys and values in the attention function that the model calls, or in the softmax that it takes."""

    site_type = AttentionSite

    def register(self, tap: str) -> Any:
        if tap == "hidden":
            return self.site.module.register_forward_pre_hook(self.on_input, prepend=True, with_kwargs=True)
        if attention.asks_interface(self.site.module):
            return attention.intercept(self.site.module, self)
        return softmax.Watching(self)

    def plan(self, setup: Child, modules: Modules, layers: ByTap) -> Plan | None:
        """As for every site. UnsupportedError where the heads are spread over processes and cannot be told apart."""
        if is_split(self.site.module):
            if layers:
                reason = f"what {setup!r} owns would see the heads of one process alone"
            elif not attention.asks_interface(self.site.module):
                reason = "this model computes attention by itself"
            else:
                return super().plan(setup, modules, layers)
            raise UnsupportedError(
                f"Prefixes do not get into the attention at {self.site.path}, whose heads are spread over processes "
                f"(tp_plan): {reason}. Use other adapters, or load the model without tp_plan."
            )
        return super().plan(setup, modules, layers)

    def planned(self, step: Step) -> Plan:
        taps = ("attention", "hidden") if "hidden" in step.needs else ("attention",)
        key_values = _alone(step)
        ways = (attention,) if attention.asks_interface(self.site.module) else (softmax, attention)
        return Plan(
            taps,
            step,
            *(
                partial(way.attend, step.run) if key_values is None else partial(way.attend_prefix, key_values)
                for way in ways
            ),
        )

    def on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        CALL.now.hidden = args[0] if args else kwargs["hidden_states"]

    def attend(self, function: Any, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Call the attention function with what the active adapters prepend."""
        plan = self.now()
        if plan is None:
            return function(module, *args, **kwargs)  # type: ignore[no-any-return]
        names = ("query", "key", "value", "attention_mask")[len(args) :]
        args = (*args, *(kwargs.pop(name, None) for name in names))
        return plan.run(attention.Attention(self.site, function, module, kwargs), *args)  # type: ignore[no-any-return]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        attention.install()


class HookedLayer(HookedSite[LayerSite]):
    """Replaces the output of a layer."""

    site_type = LayerSite

    def register(self, tap: str) -> RemovableHandle:
        return self.site.module.register_forward_hook(self.on_output, prepend=True)

    def planned(self, step: Step) -> Plan:
        return Plan(self.taps("output"), step, _alone(step) or partial(self._run, step))

    @staticmethod
    def _run(step: Step, *state: Any) -> Tensor:
        return step.run(HiddenState(*state)).h  # type: ignore[no-any-return]

    def on_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        plan = self.now()
        if plan is None:
            return None
        given = output[0] if isinstance(output, tuple) else output
        h = self.rows_first(given)
        if h.dim() < 3:
            raise UnsupportedError(
                f"What {self.site.path} gives has no positions, {list(h.shape)}, which adapters of {self.site.role} "
                "choose among. Use places='layer'."
            )
        new = self.as_before(plan.run(h, *attended_positions(h, self.site.stack)), given)
        return (new, *output[1:]) if isinstance(output, tuple) else new


def attended_positions(h: Tensor, stack: nn.Module) -> Positions:
    """(first, end, offset, length) of a `HiddenState` h [B, S, D] of a stack, from its attention mask and cache.

    While generating, the sequence ends where the given one does.
    """
    running = CALL.now.stacks.get(id(stack)) or Running()
    rows, span = h.shape[0], h.shape[1]
    for known_rows, known_span, positions in running.positions:
        if known_rows == rows and known_span == span:
            return positions
    positions = _attended_positions(rows, span, running, id(stack))
    running.positions.append((rows, span, positions))
    return positions


def _attended_positions(rows: int, span: int, running: Running, stack: int) -> Positions:
    call, mask, offset = CALL.now, running.mask, running.offset
    end = offset + span
    if (generation := call.generation) is not None:
        end = min(end, generation.prompts.setdefault(stack, end))
        if mask is None or mask.dim() != 2:  # a static cache comes with masks of other forms
            mask = generation.mask
    if mask is None or mask.dim() != 2:
        return None, None, offset, end
    attended = mask[:, :end].bool()
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(attended.all()):
        return None, None, offset, end  # elsewhere it would take longer to look than to go on
    if rows != attended.shape[0]:  # len(attended) would be a number under torch.export
        copies = rows // attended.shape[0]
        attended = attended.repeat(copies, 1) if call.copies else attended.repeat_interleave(copies, 0)
    first = attended.int().argmax(1, keepdim=True)
    count = attended.sum(1, keepdim=True)
    return first, first + count, offset, end


class HookedEmbedding(HookedSite[EmbeddingSite]):
    """Passes token embeddings through a bijection, and undoes it before the output embedding."""

    site_type = EmbeddingSite
    outputs: tuple[nn.Module, ...] = ()
    """Output embedding layers, before which the inverse is applied."""

    def register(self, tap: str) -> RemovableHandle:
        if tap.startswith("inverse"):
            module = self.outputs[int(tap.partition(":")[2])]
            return module.register_forward_pre_hook(self.on_output_embedding, prepend=True)
        if self.site.index is None:
            return self.site.module.register_forward_hook(self.on_output, prepend=True)
        if isinstance(self.site.index, str):
            return self.site.module.register_forward_pre_hook(self.on_named_input, prepend=True, with_kwargs=True)
        return self.site.module.register_forward_pre_hook(self.on_input, prepend=True)

    def planned(self, step: Step) -> Plan:
        inverses = tuple(f"inverse:{i}" for i in range(len(self.outputs)))
        return Plan(("embedding", *inverses), step, step.run, step.inverse().run)

    def pins(self) -> Iterator[Pin]:
        root = self.programs.engine.root
        wanted = set(map(id, self.outputs))
        for path in [path for path, module in root.named_modules() if id(module) in wanted]:
            owner = root
            for name in path.split("."):
                child = owner._modules[name]
                assert child is not None
                yield owner._modules, name, child
                owner = child

    def on_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        plan = self.now()
        return None if plan is None else self.as_before(plan.run(HiddenState(self.rows_first(output))).h, output)

    def on_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        plan, i = self.now(), self.site.index
        if plan is None or not isinstance(i, int):
            return None
        return (*args[:i], plan.run(HiddenState(args[i])).h, *args[i + 1 :])

    def on_named_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plan, name = self.now(), self.site.index
        if plan is None or not isinstance(name, str):
            return None
        return args, {**kwargs, name: plan.run(HiddenState(kwargs[name])).h}

    def on_output_embedding(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        plan = self.now()
        return None if plan is None else (plan.before(HiddenState(args[0])).h, *args[1:])


class HookedPrompt(HookedSite[PromptSite]):
    """Lengthens the embedded sequence, and with it the masks of its stack and of those that read it."""

    site_type = PromptSite

    def register(self, tap: str) -> RemovableHandle:
        if tap == "leaving":
            return self.site.stack.register_forward_hook(self.on_leaving, prepend=True)
        return self.site.module.register_forward_hook(self.on_output, prepend=True)

    def planned(self, step: Step) -> Plan:
        if not self.site.argument:
            return Plan(("prompt",), step, step.run)
        return Plan(("leaving",) if self.site.causal else (), step, step.run)

    def entering(self, stack: nn.Module, given: dict[str, Any], offset: int) -> dict[str, Any]:
        """What a stack is given, with the prompts that are in force: its own, or those of the stack that it reads."""
        if (plan := self.now()) is None:
            return given
        if stack is self.site.stack:
            if self.site.argument:
                return prompts.lengthen(self.site, plan.step, given, offset)
            mask = given.get("attention_mask")
            if not isinstance(mask, Tensor) or mask.dim() != 2:
                return given
            return {**given, "attention_mask": prompts.longer_mask(mask, plan.step.extra_positions)}
        mask, states = given.get("encoder_attention_mask"), given.get("encoder_hidden_states")
        if mask is None or states is None or mask.shape[-1] == states.shape[1]:  # states of a call without prompts
            return given
        return {**given, "encoder_attention_mask": prompts.longer_mask(mask, plan.step.extra_positions, causal=False)}

    def on_leaving(self, module: nn.Module, args: Any, output: Any) -> Any:
        running = CALL.now.stacks.get(id(module))
        if (plan := self.now()) is None or running is None or running.offset:
            return None
        return prompts.cut(output, plan.step.extra_positions)

    def on_output(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        plan = self.now()
        running = CALL.now.stacks.get(id(self.site.stack))
        if plan is None or (running is not None and running.offset):
            return None
        return plan.run(HiddenState(output)).h  # type: ignore[no-any-return]

    def length(self) -> int:
        """Positions that the active prompts add."""
        plan = self.now()
        return 0 if plan is None else plan.step.extra_positions


KINDS: tuple[type[HookedSite[Any]], ...] = (
    HookedLinear,
    HookedNorm,
    HookedTable,
    HookedExperts,
    HookedResidual,
    HookedAttention,
    HookedLayer,
    HookedEmbedding,
    HookedPrompt,
)


def hooked_sites(sites: list[Site], programs: Programs) -> list[HookedSite[Any]]:
    """The sites of a model with their hooks, none of which is registered yet."""
    kinds = {kind.site_type: kind for kind in KINDS}
    return [kinds[type(site)](site, number, programs) for number, site in enumerate(sites)]


RUNNING: tuple[Any, ...] = (
    HookedResidual.on_x,
    HookedResidual.on_named_x,
    HookedResidual.on_sum,
    HookedLinear.on_input,
    HookedResidual.on_normed,
    HookedLinear.on_output,
    HookedLayer.on_output,
    HookedResidual.on_h,
    HookedResidual.on_beside,
    HookedTable.on_output,
    HookedPrompt.on_output,
    HookedEmbedding.on_output,
)
"""Hooks in the order in which they run where several places are at one module: a linear map before its branch.

What a branch gives in place of its norm's output comes before the norm's own adapters, which change it further.
"""


def in_order(handle: Any) -> Any:
    """`handle`, after the hooks of ours that are registered where it is are in the order of `RUNNING`."""
    hooks: Any = (handle.hooks_dict_ref() if isinstance(handle, RemovableHandle) else None) or {}
    functions = {key: getattr(hook, "__func__", None) for key, hook in hooks.items()}
    ours = [key for key, function in functions.items() if function in RUNNING]
    ordered = sorted(ours, key=lambda key: RUNNING.index(functions[key]))
    for key in reversed(ordered) if ordered != ours else ():
        hooks.move_to_end(key, last=False)
    return handle
