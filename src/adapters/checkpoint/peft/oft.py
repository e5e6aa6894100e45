"""OFT: a rotation of what a linear map reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, ClassVar

from torch import Tensor

from adapters.checkpoint.peft.modules import Found
from adapters.checkpoint.peft.options import Option, Options, bias, dropout
from adapters.checkpoint.peft.translator import Member, Translator, Written
from adapters.errors import CheckpointError
from adapters.methods.config import flag, integer, number
from adapters.methods.oft import OFT, OFTConfig
from adapters.sites.site import AffineSite


class OFTTranslator(Translator):
    """R_i = (I - Q_i)(I + Q_i)^-1, or the series with Q_i of the other sign: so it is in PEFT."""

    peft_type = "OFT"
    methods = (OFT,)
    options: ClassVar[Mapping[str, Option]] = {
        "r": Option(integer(0), 0),
        "oft_block_size": Option(integer(0)),
        "module_dropout": dropout,
        "bias": bias,
        "coft": Option(flag, False),
        "eps": Option(number(0), 6e-5),
        "block_share": Option(flag, False),
        "use_cayley_neumann": Option(flag, True),
        "num_cayley_neumann_terms": Option(integer(3), 5),
    }
    parts: ClassVar[Mapping[str, str]] = {"oft_R.weight": "oft_R.weight", "oft_r": "oft_r"}

    def read(self, options: Options, found: Sequence[Found], shared: Mapping[str, Tensor]) -> list[Member]:
        if options["oft_block_size"] is None or any("oft_r" in module.tensors for module in found):
            raise CheckpointError(
                f"{options.what} is of an OFT before version 0.14 of PEFT, which computed something else (the config "
                "has no "
                "oft_block_size): PEFT reads it no more either. Merge it with PEFT 0.13, or train it again."
            )
        series = options["use_cayley_neumann"]
        kinds: dict[int, dict[AffineSite, dict[str, Tensor]]] = {}
        for module in found:
            site: Any = module.site
            stored = module.tensors["oft_R.weight"]
            size = _side(stored.shape[-1]) if stored.dim() == 2 else 0
            said = options["oft_block_size"] or (site.in_features // options["r"] if options["r"] else 0)
            blocks = 1 if options["block_share"] else (site.in_features // size if size else 0)
            if size < 2 or len(stored) != blocks or (said != size and said and site.in_features % said == 0):
                raise CheckpointError(
                    f"{options.what}: oft_R.weight of {module.name} is {tuple(stored.shape)}, which does not go with "
                    f"oft_block_size={options['oft_block_size']}, r={options['r']} and an input of {site.in_features}."
                )
            kinds.setdefault(size, {})[module.site] = {"Q": stored if series else -stored}
        config = OFTConfig(
            block_share=options["block_share"],
            neumann_terms=options["num_cayley_neumann_terms"] - 2 if series else None,
            dropout=options["module_dropout"],
            eps=options["eps"] if options["coft"] else None,
        )
        return [Member(config.replace(block_size=size), tensors) for size, tensors in kinds.items()]

    def write(self, modules: Sequence[Any]) -> Written:
        of = {
            name: self.common(modules, name, lambda module, name=name: module.config[name])
            for name in ("block_size", "block_share", "neumann_terms", "dropout", "eps")
        }
        terms = of["neumann_terms"]
        tensors: dict[AffineSite, dict[str, Tensor]] = {
            m.site: {"oft_R.weight": m.tensor("Q") if terms is not None else -m.tensor("Q")} for m in modules
        }
        options = {
            "r": 0,
            "oft_block_size": of["block_size"],
            "module_dropout": of["dropout"],
            "coft": of["eps"] is not None,
            "eps": 6e-5 if of["eps"] is None else of["eps"],
            "block_share": of["block_share"],
            "use_cayley_neumann": terms is not None,
            "num_cayley_neumann_terms": 5 if terms is None else terms + 2,
        }
        return Written(options, tensors)


def _side(count: int) -> int:
    """The side b of a matrix with `count` = b (b - 1) / 2 entries above its diagonal; 0 if there is none."""
    side = (1 + isqrt(1 + 8 * count)) // 2
    return side if side * (side - 1) // 2 == count else 0
