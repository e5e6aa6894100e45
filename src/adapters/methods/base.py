"""The contract of a method: a module for one site, called with a state, that returns the changed state.

What a method never sees: model names, other methods, files, which adapters are active.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from adapters.call import CALL, record
from adapters.errors import MergeError
from adapters.methods.config import AdapterConfig
from adapters.methods.stacking import RowGroups
from adapters.methods.state import LinearState, State
from adapters.sites.resolve import LinearSite, Site

S = TypeVar("S", bound=State)


class AdapterModule(nn.Module, Generic[S]):
    """The weights of one adapter at one site.

    Class attributes:
        paper: Where the method was published.
        config_class: Class of its configs.
        presets: Names that people type, and the configs they mean.
        site_type: Kind of site it acts at.
        container: Name of the module dictionary, below the site, that holds it (and of its keys in files).
        stackable: Whether several adapters of a `Stack` act one after the other. Where not, only the first does.
        shared_container: Name of the dictionary, below the base model, that holds what its sites share.
    """

    paper: ClassVar[str]
    config_class: ClassVar[type[AdapterConfig]]
    presets: ClassVar[Mapping[str, AdapterConfig]] = {}
    site_type: ClassVar[type[Site]]
    container: ClassVar[str]
    stackable: ClassVar[bool] = True
    shared_container: ClassVar[str] = ""

    def __init__(self, config: Any, site: Site, name: str) -> None:
        super().__init__()
        self.config, self.site, self.name = config, site, name

    @classmethod
    def handles(cls, config: Any) -> bool:
        """Whether `config` asks for this method: by default, whether it is of its config class."""
        return isinstance(config, cls.config_class)

    @classmethod
    def acts_at(cls, config: Any, site: Any) -> bool:
        """Whether `config` places an adapter at `site`, a site of `site_type`."""
        raise NotImplementedError

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
        """Receive what `shared` returned. Not registered as a child: it is stored once, at the base model."""

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

    @property
    def signature(self) -> tuple[Any, ...] | None:
        """Equal for adapters that `stacked` can run as one batched operation; None where it cannot."""
        return None

    @classmethod
    def stacked(cls, members: Sequence[Any], groups: RowGroups) -> AdapterModule[S]:
        """One module that gives each row of a batch the member that `groups` assigns to it."""
        raise NotImplementedError

    def record_gate(self, scores: Tensor) -> None:
        """Report gating scores [B, n] if this call was asked for them."""
        if (gating := CALL.now.gating) is not None:
            record(gating, self.name, self.site.layer, self.site.location, scores.squeeze(-1))


class LinearAdapter(AdapterModule[LinearState]):
    """A method that changes the output of a linear map: implement `forward` and, where possible, `merged`."""

    site_type = LinearSite
    container = "loras"
    site: LinearSite

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The adapted output for input x [B, S, I] and output y [B, S, O] of the linear map. May reuse y."""
        raise NotImplementedError

    def run(self, state: LinearState) -> LinearState:
        y = state.result()
        return state.replaced(self.forward(state.x, y.clone() if y is state.y or y is state.out else y))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight [O, I] and bias [O] of the linear map that alone computes what map and adapter do together."""
        raise MergeError(
            f"Adapter {self.name!r} is of type {type(self).__name__}, which cannot be folded into the base weights: "
            "it depends on the input. Keep it as an adapter."
        )


def gate(linear: nn.Linear | tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """Gate of UniPELT (Mao et al. 2022, arXiv:2110.07577): mean over positions of sigmoid(W x + b), [B, n].

    While generating it is computed from the prompt and then kept: with a cache later calls see single positions.
    """
    weight, bias = (linear.weight, linear.bias) if isinstance(linear, nn.Linear) else linear
    gates = CALL.now.gates
    kept = None if gates is None else gates.get(id(weight))
    if kept is not None and len(kept) == len(x):
        return kept
    scores = torch.sigmoid(nn.functional.linear(matched(x, weight), weight, bias)).mean(dim=1).to(x.dtype)
    if gates is not None:
        gates[id(weight)] = scores
    return scores


def matched(x: Tensor, weight: Tensor) -> Tensor:
    """x in the dtype of a weight that it meets. Autocast, where it is on, chooses one for both."""
    if x.dtype is weight.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(weight.dtype)


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
