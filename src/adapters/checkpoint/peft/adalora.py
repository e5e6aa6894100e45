"""ADALORA: LoRA in the form of a singular value decomposition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from adapters.checkpoint.peft.lora import alpha_for
from adapters.checkpoint.peft.modules import Found
from adapters.checkpoint.peft.options import Option, Options, allocated, bias, dropout
from adapters.checkpoint.peft.translator import Member, Translator, Written
from adapters.methods.adalora import AdaLoRA, AdaLoRAConfig
from adapters.methods.config import integer, number, real
from adapters.sites.site import AffineSite

ADDED = 1e-5
"""What PEFT adds to the rank by which it divides."""


class AdaLoRATranslator(Translator):
    """y = W x + lora_alpha / (r + 1e-5) * P diag(e) Q x, with the rank r of the beginning, however many are left."""

    peft_type = "ADALORA"
    methods = (AdaLoRA,)
    options: ClassVar[Mapping[str, Option]] = {
        "init_r": Option(integer(1), 12),
        "target_r": Option(integer(1), 8),
        "lora_alpha": Option(real, 8),
        "lora_dropout": dropout,
        "rank_pattern": Option(allocated, {}),
        "bias": bias,
        "tinit": Option(integer(0), 0),
        "tfinal": Option(integer(0), 0),
        "deltaT": Option(integer(1), 1),
        "beta1": Option(number(0, 1, below=True), 0.85),
        "beta2": Option(number(0, 1, below=True), 0.85),
        "orth_reg_weight": Option(number(0), 0.5),
    }
    history: ClassVar[frozenset[str]] = frozenset(
        ("r", "total_step", "init_lora_weights", "loftq_config", "qalora_group_size", "use_rslora", "alpha_pattern")
    )
    parts: ClassVar[Mapping[str, str]] = {"lora_A": "lora_A", "lora_B": "lora_B", "lora_E": "lora_E"}

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        ranks = {name.removesuffix(".lora_E"): sum(kept) for name, kept in options["rank_pattern"].items()}
        kinds: dict[int, dict[AffineSite, dict[str, Tensor]]] = {}
        for module in found:
            site: Any = module.site
            rank = ranks.get(module.name, options["init_r"])
            own = {
                "lora_A": self.part(module, "lora_A", options, rank, site.in_features),
                "lora_E": self.part(module, "lora_E", options, rank, 1),
                "lora_B": self.part(module, "lora_B", options, site.out_features, rank),
            }
            if rank:  # none is left where all were taken away
                kinds.setdefault(rank, {})[module.site] = own
        first = options["init_r"]
        scaling = (options["lora_alpha"] if options["lora_alpha"] > 0 else first) / (first + ADDED)
        config = AdaLoRAConfig(
            target_r=options["target_r"],
            dropout=options["lora_dropout"],
            initial_steps=options["tinit"],
            final_steps=options["tfinal"],
            interval=options["deltaT"],
            beta1=options["beta1"],
            beta2=options["beta2"],
            orthogonality=options["orth_reg_weight"],
        )
        return [
            Member(config.replace(r=rank, alpha=alpha_for(scaling, rank)), tensors) for rank, tensors in kinds.items()
        ]

    def write(self, modules: Sequence[Any]) -> Written:
        ranks = {module.site: module.config.r for module in modules}
        most, tensors = max(ranks.values()), {}
        for module in modules:
            self.ungated(module)
            self.unfused(module)
            rest = module.scaling * (most + ADDED) / most  # PEFT scales by lora_alpha / (r + 1e-5) itself
            tensors[module.site] = {
                "lora_A": module.lora_A,
                "lora_B": module.lora_B,
                "lora_E": module.lora_E if abs(rest - 1) < 1e-12 else module.lora_E * rest,
            }
        named = {
            "lora_dropout": "dropout",
            "target_r": "target_r",
            "tinit": "initial_steps",
            "tfinal": "final_steps",
            "deltaT": "interval",
            "beta1": "beta1",
            "beta2": "beta2",
            "orth_reg_weight": "orthogonality",
        }
        options = {
            theirs: self.common(modules, theirs, lambda module, ours=ours: module.config[ours])
            for theirs, ours in named.items()
        }
        options |= {"init_r": most, "lora_alpha": most, "total_step": options["tinit"] + options["tfinal"] + 1}
        allocated = {site: [True] * rank + [False] * (most - rank) for site, rank in ranks.items() if rank != most}
        return Written(options, tensors, patterns={"rank_pattern": ("", allocated)})
