"""What may a block own? The contract of the modules that stand beside the adapters of a block.

What is written once for all of them: building, the module tree, set-ups, freezing, files, reports, losses. A block that
owns weights is a class in `blocks.py`, a module in a file of its own, and a line in `registry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from adapters.call import CALL, record
from adapters.composition.blocks import AdapterCompositionBlock
from adapters.composition.steps import Step
from adapters.methods.base import AdapterModule
from adapters.methods.config import FrozenMapping
from adapters.sites.site import AffineSite, AttentionSite, LinearSite, ResidualSite, Site

Acting = Sequence[AdapterModule[Any] | None]
"""The adapters of a block's children at one place, in order; None for a child that does not act there."""

Children = tuple[Step | None, ...]
"""What the children of a block do at one place; None for a child that does nothing there."""


class BlockModule(nn.Module):
    """The weights of one block at one place.

    Class attributes:
        block: Type of the block.
        noun, title, stem, report: What it is called: see `Owns`.
        config_class: Class of its configs.
        presets: Identifiers of configs, which config.json keeps as they are.
        default: The identifier that stands for no config.
        optional: Whether a child may be None, "no adapter".
        ordered: Whether its weights depend on the order of the adapters.
        undecayed: Names of its parameters that weight decay leaves alone.
        loss_of_call: Whether its loss is made in forward calls.
        prepares: Whether the block prepares the state for all its children, instead of each child for itself.
    """

    block: ClassVar[type[AdapterCompositionBlock]]
    noun: ClassVar[str]
    title: ClassVar[str]
    stem: ClassVar[str]
    report: ClassVar[str]
    config_class: ClassVar[type[FrozenMapping]]
    presets: ClassVar[Mapping[str, Any]]
    default: ClassVar[str]
    optional: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    undecayed: ClassVar[tuple[str, ...]] = ()
    loss_of_call: ClassVar[bool] = False
    prepares: ClassVar[bool] = False

    config: Any
    site: Site
    name: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = cls.block.owns
        assert names is not None
        cls.noun, cls.title, cls.stem, cls.report = names.noun, names.title, names.stem, names.report

    @classmethod
    def container(cls) -> str:
        """Name of the dictionaries in the module tree that hold such modules by name, and of their keys in files."""
        return f"{cls.stem}_layer"

    @classmethod
    def verb(cls) -> str:
        """The verb that adds such modules to a model."""
        return f"add_{cls.stem}"

    @classmethod
    def load_config(cls, config: Any, block: Any = None) -> Any:
        """The config that `config` means: an identifier, a config, its dict, or None for the default.

        Args:
            config: What the user gave.
            block: The block for which it is, where one was given.
        Raises:
            ConfigError: it means none, or says something else than the block.
        """
        raise NotImplementedError

    @classmethod
    def block_of(cls, names: Sequence[str | None], config: Any, name: str | None) -> Any:
        """The block of these adapters that uses a module of this config and name."""
        raise NotImplementedError

    @classmethod
    def check_block(cls, block: Any, config: Any) -> None:
        """Raise CompositionError if modules of `config` cannot serve `block`."""

    @classmethod
    def stands(cls, acting: Acting, old: bool) -> bool:
        """Whether a place gets a module.

        Args:
            acting: Who acts there, at least one.
            old: The module comes from a file of version 1 of the library, which had them at fewer places.
        """
        raise NotImplementedError

    @classmethod
    def refusal(cls, acting: Acting) -> str | None:
        """Why no new module can combine what acts at a place; None if one can, or if none is needed."""
        return None

    @classmethod
    def build(cls, config: Any, acting: Acting, name: str, model_config: Any) -> BlockModule:
        """A module for the place of `acting`."""
        raise NotImplementedError

    @classmethod
    def step(cls, block: Any, children: Children, layer: OwnedLayer | None, masked: bool) -> Step | None:
        """What the block does at a place.

        Args:
            block: The block.
            children: What its children do there, None where they do not act; not all of them are None.
            layer: Its module there, if there is one.
            masked: Whether a child asks which positions are padding.
        Raises:
            CompositionError: it cannot mean anything there, for want of a module or otherwise.
        """
        raise NotImplementedError

    @property
    def needs(self) -> frozenset[str]:
        """Facts that it reads beside its tap: see `AdapterModule.needs`."""
        return frozenset()

    def auxiliary_loss(self) -> Tensor | float:
        """What is added to the loss of a task while it trains."""
        return 0.0

    def adds_loss(self) -> bool:
        """Whether `auxiliary_loss` can be anything but 0."""
        return False

    @classmethod
    def record(cls, name: str, site: Site, tap: str, values: Tensor) -> None:
        """Report `values` [B, S, n] of one place if this call was asked for them."""
        if (scores := CALL.now.reports.get(cls.report)) is not None:
            record(scores, name, site.layer, place_name(site, tap), values)


@dataclass(frozen=True)
class OwnedLayer:
    """What a block owns at a place: whatever stands in the module tree there, and its config."""

    module: nn.Module
    config: Any


Layers = Mapping[tuple[str, str], OwnedLayer]
"""What blocks own at one tap of a site, by the noun of their kind and by name."""


def place_name(site: Site, tap: str) -> str:
    """Name of a place in reports: its location where flags have a name for it, or its role."""
    name = site.location if isinstance(site, ResidualSite) else site.role or site.path
    return f"{name}.in" if tap == "input" else name


def widths(site: Any, tap: str) -> tuple[int, int]:
    """Widths of what adapters at a tap read, and of what they give."""
    if isinstance(site, LinearSite):
        return site.in_features, site.in_features if tap == "input" else site.out_features
    if isinstance(site, AffineSite):
        return site.out_features, site.out_features
    width: int = site.hidden_size if isinstance(site, AttentionSite) else site.width
    return width, width
