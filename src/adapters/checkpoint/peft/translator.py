"""The contract of a translator: one type of PEFT, read into a config and tensors of ours, and written from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from adapters.checkpoint.peft.modules import Found
from adapters.checkpoint.peft.options import Option, Options
from adapters.errors import CheckpointError, UnsupportedError
from adapters.methods.base import AdapterModule
from adapters.methods.bitfit import BitFitConfig
from adapters.methods.config import AdapterConfig
from adapters.sites.site import AffineSite, LinearSite


@dataclass(eq=False)
class Member:
    """A part of an adapter with one config: its tensors by place, and those that its places share.

    Args:
        config: The config; its `places` are set by who asked for it.
        tensors: Place -> name below the adapter's module -> tensor.
        shared: The same of what all places share.
        inward: Places at whose input it acts.
    """

    config: AdapterConfig
    tensors: dict[AffineSite, dict[str, Tensor]]
    shared: dict[str, Tensor] = field(default_factory=dict)
    inward: frozenset[AffineSite] = frozenset()


@dataclass
class Written:
    """What a translator writes.

    Args:
        options: Options of the type.
        tensors: Place -> end of a tensor's name behind its module -> tensor.
        shared: Tensors at the top.
        patterns: Option of a pattern -> option of its default, and its value at every place.
        lists: Option that lists modules -> their places.
        biases: Place -> what is added to the base model's bias there.
    """

    options: dict[str, Any]
    tensors: dict[AffineSite, dict[str, Tensor]]
    shared: dict[str, Tensor] = field(default_factory=dict)
    patterns: Mapping[str, tuple[str, Mapping[AffineSite, Any]]] = field(default_factory=dict)
    lists: Mapping[str, Sequence[AffineSite]] = field(default_factory=dict)
    biases: dict[AffineSite, Tensor] = field(default_factory=dict)


class Translator:
    """One type of PEFT whose tensors stand at modules.

    Class attributes:
        peft_type: Its name.
        methods: Methods whose adapters it writes.
        site_type: The kind of module it acts at.
        options: Its options, beside those that all have.
        history: Options on which nothing depends once there are tensors.
        refused: Option -> why we cannot do what it asks for.
        parts: End of the name of a tensor -> what `read` and `write` call it.
        shared_parts: The same of what stands at the top.
    """

    peft_type: ClassVar[str]
    methods: ClassVar[tuple[type[AdapterModule[Any]], ...]] = ()
    site_type: ClassVar[type[AffineSite]] = LinearSite
    options: ClassVar[Mapping[str, Option]] = {}
    history: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, str]] = {}
    parts: ClassVar[Mapping[str, str]] = {}
    shared_parts: ClassVar[Mapping[str, str]] = {}

    def with_biases(self, options: Options, members: list[Member], biases: dict[AffineSite, Tensor]) -> list[Member]:
        """The members with additions to biases of the base model.

        Args:
            options: Of the file.
            members: What `read` made.
            biases: Place -> what is added there.
        Raises:
            CheckpointError: there are some where the adapter acts, and the method has no such addition.
        """
        both = sorted(site.path for member in members for site in member.tensors if site in biases)
        if both:
            raise CheckpointError(
                f"{options.what} trains biases of modules that it adapts too (bias={options['bias']!r}): "
                f"{', '.join(both[:5])}. "
                "Here that is possible with LORA (without use_dora) alone. Merge it in PEFT "
                "(PeftModel.from_pretrained(...).merge_and_unload()), save that model and open it here."
            )
        return [*members, Member(BitFitConfig(), {site: {"bias": change} for site, change in biases.items()})]

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        """The members of our adapter. Raises CheckpointError if the options and the tensors do not agree."""
        raise NotImplementedError

    def write(self, modules: Sequence[Any]) -> Written:
        """What PEFT's file holds for the modules of an adapter. Raises UnsupportedError if it cannot hold them."""
        raise NotImplementedError

    # for those that implement the two

    @staticmethod
    def part(found: Found, name: str, options: Options, *shape: int | None) -> Tensor:
        """A tensor of a module. Raises CheckpointError if it is missing or of another shape; None: any size."""
        tensor = found.tensors.get(name)
        if tensor is None:
            raise CheckpointError(
                f"{options.what} lacks the tensor {name} of {found.name}. It has: {sorted(found.tensors)}."
            )
        agrees = len(tensor.shape) == len(shape) and all(b is None or a == b for a, b in zip(tensor.shape, shape))
        if not agrees:
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(
                f"{options.what}: {name} of {found.name} is {tuple(tensor.shape)}, but its config and this model need "
                f"({sizes})."
            )
        return tensor

    @staticmethod
    def common(modules: Sequence[Any], what: str, value: Any) -> Any:
        """What all modules have in common. Raises UnsupportedError if they differ in it."""
        values = {str(value(module)): value(module) for module in modules}
        if len(values) > 1:
            raise UnsupportedError(f"PEFT has one {what} for an adapter, and this one has {', '.join(sorted(values))}.")
        return next(iter(values.values()))

    @staticmethod
    def unfused(module: Any) -> None:
        """Raise UnsupportedError if a module adapts parts of a fused projection, each by itself."""
        if not module.whole:
            raise UnsupportedError(
                f"Adapter {module.name!r} adapts parts of the fused projection {module.site.path}, each by itself, "
                "where "
                "PEFT adapts all of it as one. Add it with places such as "
                f"'{module.site.role.partition('+')[0]}.whole'."
            )

    @staticmethod
    def ungated(module: Any) -> None:
        """Raise UnsupportedError if a module has a gate, which PEFT does not know."""
        if getattr(module, "gate", None) is not None:
            raise UnsupportedError(
                f"Adapter {module.name!r} has a gate (use_gating), which adapters of PEFT do not have."
            )
