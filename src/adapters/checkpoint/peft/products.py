"""LOHA and LOKR: updates that are elementwise, or Kronecker, products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from adapters.checkpoint.peft.modules import Found, by_pattern
from adapters.checkpoint.peft.options import Option, Options, alphas, dropout, ranks
from adapters.checkpoint.peft.translator import Member, Translator, Written
from adapters.errors import CheckpointError
from adapters.methods.config import AdapterConfig, flag, integer, real
from adapters.methods.loha import LoHa, LoHaConfig
from adapters.methods.lokr import LoKr, LoKrConfig
from adapters.sites.site import AffineSite

OPTIONS: Mapping[str, Option] = {
    "r": Option(integer(1), 8),
    "alpha": Option(real, 8),
    "rank_pattern": Option(ranks, {}),
    "alpha_pattern": Option(alphas, {}),
    "rank_dropout": dropout,
    "module_dropout": dropout,
}


class ProductTranslator(Translator):
    """What the two have in common: a rank and an alpha a module, and tensors of other names."""

    options: ClassVar[Mapping[str, Option]] = OPTIONS
    history: ClassVar[frozenset[str]] = frozenset(("use_effective_conv2d", "rank_dropout_scale"))
    inner: ClassVar[Mapping[str, str]] = {}

    def config(self, options: Options, rank: int, alpha: float) -> AdapterConfig:
        """Our config."""
        raise NotImplementedError

    def ranks(self, module: Found) -> list[int]:
        """The inner widths of the products of a module: those of the factors a [., r] and b [r, .]."""
        return [
            t.shape[-1 if name.endswith("a") else 0]
            for name, t in module.tensors.items()
            if t.dim() and name.endswith(("_a", "_b"))
        ]

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        options.untrained("rank_dropout", "module_dropout")
        kinds: dict[tuple[int, float], dict[AffineSite, dict[str, Tensor]]] = {}
        for module in found:
            rank = by_pattern(options["rank_pattern"], module.name, options["r"])
            alpha = by_pattern(options["alpha_pattern"], module.name, options["alpha"])
            if any(other != rank for other in self.ranks(module)):
                raise CheckpointError(
                    f"{options.what}: the tensors of {module.name} have rank {self.ranks(module)}, but its config "
                    f"says {rank}."
                )
            own = {f"updates.0.{self.inner[part]}": tensor for part, tensor in module.tensors.items()}
            kinds.setdefault((rank, alpha), {})[module.site] = own
        return [Member(self.config(options, *size), tensors) for size, tensors in kinds.items()]

    def write(self, modules: Sequence[Any]) -> Written:
        outer = {ours: theirs for theirs, ours in self.inner.items()}
        tensors = {}
        for module in modules:
            self.ungated(module)
            self.unfused(module)
            tensors[module.site] = {outer[name]: tensor for name, tensor in module.updates[0].named_parameters()}
        sizes = {module.site: module.config.r for module in modules}
        scales = {module.site: module.config.alpha for module in modules}
        patterns: dict[str, tuple[str, Mapping[AffineSite, Any]]] = {
            "rank_pattern": ("r", sizes),
            "alpha_pattern": ("alpha", scales),
        }
        return Written(self.more(modules), tensors, patterns=patterns)

    def more(self, modules: Sequence[Any]) -> dict[str, Any]:
        """Further options."""
        return {}


class LoHaTranslator(ProductTranslator):
    """D = (B_1 A_1) * (B_2 A_2)."""

    peft_type = "LOHA"
    methods = (LoHa,)
    inner: ClassVar[Mapping[str, str]] = {
        "hada_w1_a": "B_1",
        "hada_w1_b": "A_1",
        "hada_w2_a": "B_2",
        "hada_w2_b": "A_2",
    }
    parts: ClassVar[Mapping[str, str]] = {name: name for name in inner}

    def config(self, options: Options, rank: int, alpha: float) -> AdapterConfig:
        return LoHaConfig(r=rank, alpha=alpha)


class LoKrTranslator(ProductTranslator):
    """D = C (x) D', the Kronecker product, each whole or a product."""

    peft_type = "LOKR"
    methods = (LoKr,)
    options: ClassVar[Mapping[str, Option]] = {
        **OPTIONS,
        "decompose_both": Option(flag, False),
        "decompose_factor": Option(integer(-1), -1),
    }
    inner: ClassVar[Mapping[str, str]] = {
        "lokr_w1": "C",
        "lokr_w1_a": "C_1",
        "lokr_w1_b": "C_2",
        "lokr_w2": "D",
        "lokr_w2_a": "D_1",
        "lokr_w2_b": "D_2",
    }
    parts: ClassVar[Mapping[str, str]] = {name: name for name in inner}

    def config(self, options: Options, rank: int, alpha: float) -> AdapterConfig:
        factor = options["decompose_factor"]
        return LoKrConfig(
            r=rank, alpha=alpha, factor=None if factor < 1 else factor, decompose_both=options["decompose_both"]
        )

    def more(self, modules: Sequence[Any]) -> dict[str, Any]:
        factor = self.common(modules, "decompose_factor", lambda module: module.config.factor)
        both = self.common(modules, "decompose_both", lambda module: module.config.decompose_both)
        return {"decompose_factor": -1 if factor is None else factor, "decompose_both": both}
