"""IA3: a factor for each output of a linear map, or for each input of one in the feed-forward block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from adapters.checkpoint.peft.modules import Found
from adapters.checkpoint.peft.options import Option, Options, names
from adapters.checkpoint.peft.translator import Member, Translator, Written
from adapters.methods.ia3 import IA3, IA3Config, InwardIA3


class IA3Translator(Translator):
    """y = l * (W x + b), or y = W (l * x) + b; the shape of l, [O, 1] or [1, I], tells which."""

    peft_type = "IA3"
    methods = (IA3, InwardIA3)
    options: ClassVar[Mapping[str, Option]] = {"feedforward_modules": Option(names)}
    history: ClassVar[frozenset[str]] = frozenset(("init_ia3_weights",))
    parts: ClassVar[Mapping[str, str]] = {"ia3_l": "ia3_l"}

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        tensors, inward = {}, set()
        for module in found:
            site: Any = module.site
            vector = module.tensors["ia3_l"]
            if vector.dim() == 2 and len(vector) == 1 and site.out_features > 1:
                inward.add(module.site)
                vector = self.part(module, "ia3_l", options, 1, site.in_features)
            else:
                vector = self.part(module, "ia3_l", options, site.out_features, 1)
            tensors[module.site] = {"lora_B": vector.reshape(-1, 1)}
        return [Member(IA3Config(), tensors, inward=frozenset(inward))]

    def write(self, modules: Sequence[Any]) -> Written:
        tensors = {}
        for module in modules:
            self.ungated(module)
            inward = isinstance(module, InwardIA3)
            tensors[module.site] = {"ia3_l": module.plain_scale().view((1, -1) if inward else (-1, 1))}
        inner = [module.site for module in modules if isinstance(module, InwardIA3)]
        return Written({"init_ia3_weights": True}, tensors, lists={"feedforward_modules": inner})
