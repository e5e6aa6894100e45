"""LORA: LoRA and DoRA, with a rank and a scaling for every module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adapters.checkpoint.peft import tokens
from adapters.checkpoint.peft.modules import Found, by_pattern
from adapters.checkpoint.peft.options import Option, Options, alphas, bias, dropout, ranks, token_lists
from adapters.checkpoint.peft.translator import Member, Translator, Written
from adapters.errors import CheckpointError, UnsupportedError
from adapters.methods.config import flag, integer, list_of, real, text
from adapters.methods.experts import PerExpert
from adapters.methods.lora import DoRA, DoRAConfig, LoRA, LoRAConfig
from adapters.sites.site import AffineSite, ExpertsSite, TableSite

MERGE = (
    "Merge the adapter in PEFT (PeftModel.from_pretrained(...).merge_and_unload()), save that model and open it here."
)


IN_MAPS, IN_TABLES = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
"""What files call A and B at linear maps, and at tables of embeddings."""


def alpha_for(scaling: float, rank: int) -> float:
    """The alpha for which alpha / rank is just `scaling`."""
    alpha = scaling * rank
    near = (alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf))
    alpha = next((value for value in near if value / rank == scaling), alpha)
    return int(alpha) if alpha.is_integer() else alpha


def is_mirrored(site: ExpertsSite) -> bool:
    """Whether PEFT takes the outputs of packed experts for their inputs: it asks the module which is which."""
    return site.stored.dim() > 2 and site.transposed != (getattr(site.module, "is_transposed", False) is True)


def packed(site: ExpertsSite, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A [E, r, I] and B [E, O, r] of PEFT's matrices of all experts, [E r, I] and [O, r E]."""
    a = a.reshape(site.experts, -1, a.shape[-1])
    b = b.reshape(len(b), -1, site.experts).permute(2, 0, 1)
    return (b.mT.contiguous(), a.mT.contiguous()) if is_mirrored(site) else (a, b.contiguous())


def unpacked(site: ExpertsSite, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """PEFT's matrices of A [E, r, I] and B [E, O, r]."""
    if is_mirrored(site):
        a, b = b.mT, a.mT
    return a.reshape(-1, a.shape[-1]), b.permute(1, 2, 0).reshape(b.shape[1], -1)


class LoRATranslator(Translator):
    """y = W x + s * B A x with s = lora_alpha / r, or lora_alpha / sqrt(r); DoRA as in its paper."""

    peft_type = "LORA"
    methods = (LoRA, DoRA)
    options: ClassVar[Mapping[str, Option]] = {
        "r": Option(integer(1), 8),
        "lora_alpha": Option(real, 8),
        "lora_dropout": dropout,
        "rank_pattern": Option(ranks, {}),
        "alpha_pattern": Option(alphas, {}),
        "use_rslora": Option(flag, False),
        "use_dora": Option(flag, False),
        "lora_bias": Option(flag, False),
        "bias": bias,
        "init_lora_weights": Option(flag | text, True),
        "target_parameters": Option(list_of(text)),
        "trainable_token_indices": Option(token_lists),
    }
    history: ClassVar[frozenset[str]] = frozenset(
        ("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config", "qalora_group_size")
        + ("merge_weights",)
    )
    refused: ClassVar[Mapping[str, str]] = {
        "use_qalora": f"QALoRA pools the input of its layers, which no method here does. {MERGE}",
        "use_bdlora": f"Block-diagonal matrices are not among our methods. {MERGE}",
        "arrow_config": "Arrow routes between several LoRA adapters: load these one by one, and combine them with "
        "Route.",
        "kasa_config": f"KaSA changes the base model's weights. {MERGE}",
        "monteclora_config": f"MonteCLoRA samples its matrices, which no method here does. {MERGE}",
        "alora_invocation_tokens": "Activated LoRA acts behind certain tokens alone, which no method here does.",
        "layer_replication": f"It makes the base model deeper, which adapters here do not. {MERGE}",
        "enable_lora": f"PEFT had an A of its own for each part of a fused projection before version 0.3. {MERGE}",
    }
    parts: ClassVar[Mapping[str, str]] = {
        "lora_A.weight": "lora_A",
        "lora_B.weight": "lora_B",
        "lora_B.bias": "lora_B.bias",
        "lora_magnitude_vector.weight": "magnitude",
        "lora_magnitude_vector": "magnitude",
        "lora_embedding_A": "lora_A",
        "lora_embedding_B": "lora_B",
        tokens.AT_ANOTHER: tokens.ROWS,
    }

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        kinds: dict[tuple[int, float], dict[AffineSite, dict[str, Tensor]]] = {}
        for module in found:
            rank, scaling = self.rank(options, module.name), self.scaling(options, module.name)
            a, b = self.matrices(options, module, rank)
            if isinstance(module.site, ExpertsSite):
                a, b = packed(module.site, a, b)
            elif base := self.taken(options, module, rank, scaling):
                a, b, rank = torch.cat([a, base[0]]), torch.cat([b, -base[1]], 1), 2 * rank
            own = {"lora_A": a, "lora_B": b}
            if options["lora_bias"]:
                own["bias"] = scaling * self.part(module, "lora_B.bias", options, module.site.out_features)
            elif "lora_B.bias" in module.tensors:
                raise CheckpointError(f"{options.what} has tensors lora_B.bias, but its config says no lora_bias.")
            if options["use_dora"]:
                own["m.weight"] = self.part(module, "magnitude", options, module.site.out_features)[:, None]
            elif "magnitude" in module.tensors:
                raise CheckpointError(f"{options.what} has magnitudes, as DoRA has, but its config says no use_dora.")
            kinds.setdefault((rank, alpha_for(scaling, rank)), {})[module.site] = own
        members = []
        for (rank, alpha), tensors in kinds.items():
            size = {"r": rank, "alpha": alpha, "dropout": options["lora_dropout"]}
            if options["use_dora"] and options["lora_bias"]:
                raise CheckpointError(
                    f"{options.what} has lora_bias together with use_dora, which no method here has. {MERGE}"
                )
            config = DoRAConfig(**size, dora_form="weight") if options["use_dora"] else LoRAConfig(**size)
            members.append(Member(config.replace(use_bias=True) if options["lora_bias"] else config, tensors))
        return members

    def with_biases(self, options: Options, members: list[Member], biases: dict[AffineSite, Tensor]) -> list[Member]:
        if options["use_dora"]:
            return super().with_biases(options, members, biases)
        result = []
        for member in members:
            inside = {site: own for site, own in member.tensors.items() if site in biases}
            outside = {site: own for site, own in member.tensors.items() if site not in biases}
            for site, own in inside.items():
                change = biases.pop(site)
                own["bias"] = own["bias"] + change.to(own["bias"].device) if "bias" in own else change
            result += [Member(member.config.replace(use_bias=True), inside)] if inside else []
            result += [Member(member.config, outside)] if outside else []
        return super().with_biases(options, result, biases) if biases else result

    def rank(self, options: Options, name: str) -> int:
        """The rank at a module."""
        return int(by_pattern(options["rank_pattern"], name, options["r"]))

    def scaling(self, options: Options, name: str) -> float:
        """s at a module."""
        rank, alpha = self.rank(options, name), by_pattern(options["alpha_pattern"], name, options["lora_alpha"])
        return float(alpha / math.sqrt(rank) if options["use_rslora"] else alpha / rank)

    def matrices(self, options: Options, module: Found, rank: int) -> tuple[Tensor, Tensor]:
        """A [r, I] and B [O, r]."""
        site: Any = module.site
        inputs, outputs, count = site.in_features, site.out_features, 1
        if isinstance(site, ExpertsSite):
            count = site.experts
            inputs, outputs = (outputs, inputs) if is_mirrored(site) else (inputs, outputs)
        a = self.part(module, "lora_A", options, rank * count, inputs)
        return a, self.part(module, "lora_B", options, outputs, rank * count)

    @staticmethod
    def taken(options: Options, module: Found, rank: int, scaling: float) -> tuple[Tensor, Tensor] | None:
        """A and B that PEFT takes from the base model's weight when it loads an adapter, or None.

        It does so where training began with a part of the weight (PiSSA, OLoRA): y = (W - s B_0 A_0) x + s B A x.
        """
        start = str(options["init_lora_weights"]).lower()
        if start.startswith(("pissa_niter", "corda", "loftq", "lora_ga")):
            raise CheckpointError(
                f"{options.what}: init_lora_weights is {start!r}: training began with a part of the base model's "
                "weights, "
                "which cannot be told from the file. Save it in PEFT with path_initial_model_for_weight_conversion, "
                "which "
                "makes it a LoRA for the unchanged model; or, if the base model was saved as it was changed, open "
                "that one "
                "and set init_lora_weights to true in adapter_config.json."
            )
        if start not in ("pissa", "olora") or isinstance(module.site, TableSite):
            return None
        weight = module.site.weight.detach().float()
        if start == "olora":
            q, r = torch.linalg.qr(weight)
            return r[:rank], q[:, :rank]
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        root = (s[:rank] / scaling).sqrt()
        return root[:, None] * v[:rank], u[:, :rank] * root

    def write(self, modules: Sequence[Any]) -> Written:
        tensors: dict[AffineSite, dict[str, Tensor]] = {}
        sizes: dict[AffineSite, int] = {}
        scales: dict[AffineSite, float] = {}
        dora = self.common(modules, "use_dora", lambda module: isinstance(getattr(module, "one", module), DoRA))
        for module in modules:
            self.ungated(module)
            own = module.one if isinstance(module, PerExpert) else module
            a, b = own.wide()
            rank = a.shape[-2]
            alpha = module.config.alpha if own.whole else alpha_for(own.scaling, rank)
            if isinstance(module, PerExpert):
                a, b = unpacked(module.site, a, b)
            names = IN_TABLES if isinstance(module.site, TableSite) else IN_MAPS
            tensors[module.site] = dict(zip(names, (a, b)))
            if dora:
                self.check_form(module)
                tensors[module.site]["lora_magnitude_vector"] = module.m.weight.view(-1)
            sizes[module.site], scales[module.site] = rank, alpha
        options = {
            "lora_dropout": self.common(modules, "lora_dropout", lambda module: module.config.dropout),
            "use_dora": dora,
            "init_lora_weights": True,
            "use_rslora": False,
        }
        patterns: dict[str, tuple[str, Mapping[AffineSite, Any]]] = {
            "rank_pattern": ("r", sizes),
            "alpha_pattern": ("lora_alpha", scales),
        }
        for module in (module for module in modules if isinstance(module, PerExpert)):
            if options["lora_dropout"]:
                raise UnsupportedError(
                    f"{module.name!r} has dropout at the experts of {module.site.address}, which PEFT's adapters of "
                    "parameters do not have. Set it to 0."
                )
        biases = {module.site: module.bias for module in modules if getattr(module, "bias", None) is not None}
        if any(site.bias is None for site in biases):
            options["lora_bias"] = True
            for module in modules:
                shift = biases.pop(module.site, module.lora_B.new_zeros(module.out_features))
                tensors[module.site]["lora_B.bias"] = shift / module.scaling
        return Written(options, tensors, patterns=patterns, biases=biases)

    @staticmethod
    def check_form(module: Any) -> None:
        """Raise UnsupportedError for a DoRA that computes what no DoRA of PEFT does."""
        alike = module.scaling == 1 and module.site.bias is None
        if module.config.dora_form == "output" and not alike:
            raise UnsupportedError(
                f"Adapter {module.name!r} is a DoRA with dora_form='output': its magnitude multiplies the bias of "
                f"{module.site.path} too, or its norm leaves alpha / r out, and PEFT's does neither. Train it with "
                "dora_form='weight', or with alpha = r at layers without bias."
            )
