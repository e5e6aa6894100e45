"""The contract of a method: a module for one site, called with a state, that returns the changed state.

What a method never sees: model names, other methods, files, which adapters are active.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.call import CALL, GATING, attended_mean, prompted, record
from adapters.errors import ConfigError, MergeError, UnsupportedError
from adapters.methods.config import AdapterConfig
from adapters.methods.parts import PATCHES, call, matched, watched
from adapters.methods.stacking import RowGroups
from adapters.methods.state import HiddenState, LinearState, State
from adapters.sharding import is_spread
from adapters.sites.site import AffineSite, LinearSite, Site, TableSite

S = TypeVar("S", bound=State)
Direct = tuple[str, Callable[..., Any]]
"""A tap of a site, and the function that does there all that an adapter does alone. See `AdapterModule.direct`."""


class MethodModule(nn.Module):
    """What a method stores: an adapter, what the sites of an adapter share, or a piece of either.

    Attributes:
        fixed_parameters: Names of its own parameters that never train.
    """

    fixed_parameters: tuple[str, ...] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("forward", "_compiled_call_impl") or isinstance(value, nn.Module):
            PATCHES.count += 1
        super().__setattr__(name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # torch looks for all kinds of hooks, which at so small a module takes longer than many an operation
        if CALL.now.unwatched or not (torch.compiler.is_compiling() or watched(self)):
            return self.forward(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    def tensor(self, name: str) -> Tensor:
        """The parameter `name`, or what stands in its place: pruned, normalised, computed by a parametrization."""
        found = self._parameters.get(name)
        return getattr(self, name) if found is None else found

    def resting_value(self: nn.Module, name: str) -> Tensor | float:
        """The value of the tensor `name` with which the adapter does nothing, or what differences are taken from."""
        owner = self.get_submodule(name.rpartition(".")[0])
        return 1.0 if isinstance(owner, nn.LayerNorm) and name.endswith("weight") else 0.0


def fixed_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters in `module` and below that its method keeps as they are in training."""
    for owner in module.modules():
        if isinstance(owner, MethodModule):
            yield from (p for name in owner.fixed_parameters if (p := owner._parameters.get(name)) is not None)


def resting_value(module: nn.Module, name: str) -> Tensor | float:
    """`AdapterModule.resting_value`, of any module."""
    return module.resting_value(name) if isinstance(module, MethodModule) else MethodModule.resting_value(module, name)


class AdapterModule(MethodModule, Generic[S]):
    """The weights of one adapter at one site.

    Class attributes:
        paper: Where the method was published.
        titles: What people call it: the `kind` of its configs, and names of presets where these have a title of their
            own, to titles.
        config_class: Class of its configs.
        presets: Names that people type, and the configs they mean.
        site_type: Kind of site it acts at.
        container: Name of the module dictionary, below the site, that holds it (and of its keys in files).
        chained_before: Whether adapters of this method were chained in a `Stack` in version 1 of the library too. Where
            not, only the first adapter of a stack acted.
        chains: Whether this adapter acts when others come before it in a `Stack`. Only adapters from files of
            version 1 do not, if their method was not chained there: they compute what they were trained with.
        unmixable: Why `Fuse` cannot attend to the outputs of several adapters of this method, as the end of a sentence
            about one of them; empty where it can.
        fused_before: Whether version 1 of the library had fusion layers where adapters of this method act.
        fuses_as_first: Whether only the first child of a `Fuse` acts where the block has no layer, as in version 1.
        splits: Whether it can act on some positions of a sequence alone (`Split`).
        averages: Whether an adapter can follow an `Average` of adapters of this method.
        placeable: Whether the `places` of a config say where it acts. Where not, its config has another say.
        inward: Whether it acts where an entry of `places` names the input of a linear map ("ffn.down.in").
        merges: Whether it can become part of the base weights (`merge_adapter`).
        directed: Whether it has a `direction`.
        per_expert: Whether it can act at the linear maps of experts that are packed into one parameter (`experts.py`).
        looks_up: Whether it can act at tables of embeddings, where x are numbers of rows.
        acts_tied: Whether it acts too where an output embedding has the weights of the table that it acts at.
        tap: Where a method for linear maps acts: at their "output", or, for a method that changes what they read, at
            their "input": there its state is a `HiddenState` of x, and the map reads h afterwards.
        shared_container: Name of the dictionary, below the base model, that holds what its sites share.
        shared_location: Name under which listings show what its sites share; "" where they do not.
        shareable: Names of the parameters that several adapters can have in common (`share_parameters`).
    """

    paper: ClassVar[str]
    titles: ClassVar[Mapping[str, str]] = {}
    config_class: ClassVar[type[AdapterConfig]]
    presets: ClassVar[Mapping[str, AdapterConfig]] = {}
    site_type: ClassVar[type[Site]]
    container: ClassVar[str]
    chained_before: ClassVar[bool] = True
    chains: bool = True
    unmixable: str = ""
    fused_before: ClassVar[bool] = False
    fuses_as_first: ClassVar[bool] = False
    splits: ClassVar[bool] = True
    averages: ClassVar[bool] = True
    placeable: ClassVar[bool] = True
    inward: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    directed: ClassVar[bool] = False
    per_expert: ClassVar[bool] = False
    looks_up: ClassVar[bool] = False
    acts_tied: ClassVar[bool] = False
    tap: ClassVar[str] = "output"
    shared_container: ClassVar[str] = ""
    shared_location: ClassVar[str] = "shared"
    shareable: ClassVar[tuple[str, ...]] = ()
    common: nn.Module | None

    def __init__(self, config: Any, site: Site, name: str) -> None:
        super().__init__()
        self.config, self.site, self.name = config, site, name
        self.__dict__["common"] = None
        if isinstance(site, TableSite):
            self.unmixable = "acts at a table of embeddings, which reads numbers that say nothing of a mixture"
            if getattr(config, "use_gating", False):
                raise ConfigError(
                    f"use_gating cannot act at the table of embeddings {site.path}: a gate reads hidden states, and a "
                    "table is given numbers. Leave it out there."
                )

    @classmethod
    def handles(cls, config: Any) -> bool:
        """Whether `config` asks for this method: by default, whether it is of its config class."""
        return isinstance(config, cls.config_class)

    @classmethod
    def acts_at(cls, config: Any, site: Any) -> bool:
        """Whether the flags of `config` put an adapter at `site`, a site of `site_type`. `places` stand above them."""
        raise NotImplementedError

    @classmethod
    def lacks(cls, site: Any) -> str | None:
        """What an adapter needs that `site`, a site of `site_type`, does not have, in a word; None if nothing."""
        return None

    @classmethod
    def check_new(cls, config: Any, site: Any) -> None:
        """Raise ConfigError for what a new adapter may not be at `site`, although adapters in files may."""

    @classmethod
    def shared(cls, config: Any, sites: list[Any]) -> nn.Module | None:
        """What the modules at all `sites` share, or None."""
        return None

    @classmethod
    def kept_slots(cls, config: Any, inner: str, tensor: Tensor, count: int, kept: list[int]) -> Tensor:
        """A stored tensor of what `count` sites of one location share, for those sites alone whose numbers are kept.

        Args:
            config: Config of the adapter.
            inner: Name of the tensor below the location's module.
            tensor: The tensor.
            count: Sites that share it in the file.
            kept: Numbers of the sites that stay.
        """
        return tensor

    def bind(self, shared: nn.Module | None) -> None:
        """Receive what `shared` returned: `common`. Not registered as a child: it is stored once, at the base model."""
        self.__dict__["common"] = shared

    def sources(self) -> tuple[nn.Module, ...]:
        """The modules that hold the tensors of this adapter."""
        return (self,) if self.common is None else (self, self.common)

    def prepare(self, state: S) -> S:
        """What is done once before this adapter, or before a block whose first adapter this is."""
        return state

    @property
    def preparation(self) -> Any:
        """Equal for adapters whose `prepare` does the same."""
        return None

    def run(self, state: S) -> S:
        """Apply the adapter: the one step that composition blocks combine."""
        raise NotImplementedError

    def direct(self) -> Direct | None:
        """For an adapter that acts alone: the tap at which one plain function does all, and the function.

            kind of site    tap         function
            linear map      "output"    (x, y) -> y
            linear map      "input"     (x,) -> x
            residual        "h"         (h,) -> h, the output of the branch
            residual        "sum"       (h + x,) -> h + x, the input of the norm that follows
            residual        "branch"    (h, x) -> h
            attention       "prefix"    () -> (keys, values), each [1 or B, H, P, head_dim]
            layer           "output"    (h, first, end, offset, length) -> h, see `HiddenState`

        Functions may write into y and h where no graph is recorded. None: the adapter needs the whole state of its
        site, and `run` is called as within a block.
        """
        return None

    @property
    def needs(self) -> frozenset[str]:
        """Facts that this adapter reads beside its tap.

        "hidden" is the input of its attention module, "mask" the attention mask of the layers (`call.attended`).
        """
        return frozenset(["mask"]) if getattr(self.config, "use_gating", False) else frozenset()

    @property
    def norm_after(self) -> bool:
        """At a residual branch: whether the layer adds its residual and its norm behind this adapter."""
        return True

    @property
    def extra_positions(self) -> int:
        """Positions by which this adapter lengthens the sequence."""
        return 0

    def cannot_follow(self, before: AdapterModule[Any]) -> str | None:
        """Why this adapter cannot come after `before` in a `Stack` at its site; None if it can."""
        return None

    def invert(self, state: S) -> S:
        """Undo `run`: for adapters of embeddings, in front of the output embedding.

        Raises:
            UnsupportedError: the method is no bijection.
        """
        raise UnsupportedError(
            f"Adapter {self.name!r} is of type {type(self).__name__}, which cannot be inverted: use an invertible "
            "adapter (inv_adapter='nice') at the embeddings."
        )

    def direction(self) -> Tensor:
        """The unit vector [I] of inputs that the adapter changes most; only where it is `directed`."""
        raise NotImplementedError

    def eject(self) -> bool:
        """Put the tensors that a reparametrisation makes in its place; False where there is none."""
        return False

    @classmethod
    def ejected(cls, config: Any) -> Any:
        """The config that an adapter of `config` has after `eject`."""
        return config

    @property
    def signature(self) -> tuple[Any, ...] | None:
        """Equal for adapters that `stacked` can run as one batched operation; None where it cannot.

        Widths inside of an adapter may differ, such as ranks: smaller ones are filled up with zeros.
        """
        return None

    @classmethod
    def stacked(cls, members: Sequence[Any], groups: RowGroups) -> AdapterModule[S]:
        """One module that gives each row of a batch the member that `groups` assigns to it."""
        raise NotImplementedError

    @property
    def spares(self) -> bool:
        """Of what `stacked` made: whether it leaves rows as they are to which `groups` assigns no member."""
        return False

    def record_gate(self, scores: Tensor) -> None:
        """Report gating scores [B, 1, n] if this call was asked for them."""
        if (gating := CALL.now.reports.get(GATING)) is not None:
            record(gating, self.name, self.site.layer, self.site.location, scores.squeeze(1).squeeze(-1))


PLAIN = (nn.Linear, Conv1D)
"""Classes of linear maps whose outputs nobody else holds."""


class AffineAdapter(AdapterModule[LinearState]):
    """A method that changes the output of linear maps or norms: implement `forward` and, where possible, `merged`."""

    site_type = AffineSite
    container = "loras"
    merges = True
    site: AffineSite

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The adapted output for input x [B, S, I] and output y [B, S, O] of the map or norm. May reuse y."""
        raise NotImplementedError

    def run(self, state: LinearState) -> LinearState:
        y = state.result()
        return state.replaced(self(state.x, y.clone() if y is state.y or y is state.out else y))

    def direct(self) -> Direct | None:
        return "output", self

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight ([O, I], of norms [O]) and bias [O] with which the module alone computes what both do together."""
        raise MergeError(
            f"Adapter {self.name!r} is of type {type(self).__name__}, which cannot be folded into the base weights: "
            "it depends on the input. Keep it as an adapter."
        )

    def changed_by_merging(self, before: AffineAdapter) -> str | None:
        """Why this adapter computes something else once `before`, in front of it in a `Stack`, is merged; None if not.

        An adapter of the same input is behind this one then, since it is next to the weight.
        """
        return None

    def merged_bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias [O] of `merged` where the weight stays what it is, whatever holds it; None where it does not."""
        return None


class Effect(NamedTuple):
    """What an adapter does to a linear map, for every input alike: y <- scale * (W x + b) + F_n ... F_1 x.

    Attributes:
        factors: F_1, ..., F_n, which is [O, r]; none for no update.
        scale: [O]; None for 1.
    """

    factors: tuple[Tensor, ...] = ()
    scale: Tensor | None = None


class LinearAdapter(AffineAdapter):
    """A method that changes the output of a linear map, and no norm."""

    site_type = LinearSite
    site: LinearSite

    def effect(self) -> Effect:
        """What it does where there is no module to hook, as for each of many experts: see `Effect`."""
        raise NotImplementedError

    def may_write(self, y: Tensor) -> bool:
        """Whether the output y of the linear map is ours to write into.

        Only of plain linear maps it is known that they keep nothing of what they return: quantised ones may return
        views of what they hold. What is traced should not depend on it.
        """
        return (
            type(self.site.module) in PLAIN
            and y.is_contiguous()
            and not is_spread(self.site.module._parameters.get("weight"))  # then y may be a view
            and not torch.compiler.is_compiling()
            and (CALL.now.unwatched or not torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]
        )


class InputAdapter(LinearAdapter):
    """A method that changes what a linear map reads: implement `forward` and, where possible, `merged`."""

    tap = "input"

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """What the linear map reads in place of x [B, S, I]."""
        raise NotImplementedError

    def run(self, state: HiddenState) -> HiddenState:  # type: ignore[override]
        return replace(state, h=self(state.h))

    def direct(self) -> Direct | None:
        return "input", self


def gate(linear: nn.Linear | tuple[Tensor, Tensor], x: Tensor, skips_padding: bool) -> Tensor:
    """Gate of UniPELT (Mao et al. 2022, arXiv:2110.07577): mean over positions of sigmoid(W x + b), [B, 1, n].

    Args:
        linear: W [n, D] and b [n].
        x: What the adapter reads, [B, S, D].
        skips_padding: Leave padding out of the mean.
    """
    weight, bias = (linear.weight, linear.bias) if isinstance(linear, nn.Linear) else linear

    def opened(x: Tensor) -> Tensor:
        given = matched(x, weight)
        gates = torch.sigmoid(call(linear, given) if isinstance(linear, nn.Linear) else F.linear(given, weight, bias))
        return (attended_mean(gates) if skips_padding else gates.mean(1, keepdim=True)).to(x.dtype)

    return once_per_prompt(weight, x, opened)


def once_per_prompt(owner: object, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
    """`compute` of x [B, S, D]; while generating that of the prompt, and then what it gave, [B, ...].

    With a cache later calls see single positions, of which nothing can be told that holds for a whole sequence.

    Args:
        owner: Stands for what is computed, and lives as long as the model.
        x: What a place reads.
        compute: Makes one value for every row.
    """
    kept = CALL.now.gates
    if kept is None:
        return compute(x)
    known = kept.get(id(owner))
    if known is not None and len(known) == len(x):
        return known
    value = kept[id(owner)] = compute(x[:, : prompted(x.shape[1])])
    return value


def new_gate(in_features: int, gates: int = 1) -> nn.Linear:
    """A gate with N(0, 0.02) weights."""
    linear = nn.Linear(in_features, gates)
    nn.init.normal_(linear.weight, std=0.02)
    return linear


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def init_seed(config: Any) -> Any:
    """Context in which random initialisation follows `config.init_weights_seed`, if one is set."""
    seed = getattr(config, "init_weights_seed", None)
    return _seeded(seed) if seed else nullcontext()
