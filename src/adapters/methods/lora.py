"""LoRA and DoRA: low-rank updates of linear layers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from adapters.methods.config import (
    AdapterConfig,
    Rule,
    decimal,
    dtype_name,
    flag,
    integer,
    layer_numbers,
    list_of,
    nothing,
    one_of,
    probability,
    real,
    seed,
    text,
)


@dataclass(eq=False)
class LoRAConfig(AdapterConfig):
    """Adds a trained matrix of low rank to linear layers.

        y = W x + (alpha / r) * B A x

    Paper: Hu et al. 2021, arXiv:2106.09685. The config also covers IA3, VeRA and DoRA, which have classes of
    their own.

    Args:
        selfattn_lora: Adapt the projections of the attention that `attn_matrices` names.
        intermediate_lora: Adapt the first linear layer of the feed-forward block.
        output_lora: Adapt the second linear layer of the feed-forward block.
        leave_out: Layers without adapter, counted from 0.
        r: Rank of the update, at least 1.
        alpha: Numerator of the scaling alpha / r.
        dropout: Probability in [0, 1], applied to x before A.
        attn_matrices: Which of query "q", key "k" and value "v" are adapted.
        composition_mode: "add" the update, or "scale" the output by it (IA3; needs r 1 and dropout 0).
        init_weights: "lora" (B starts at zero), "bert" (normal, 0.02), "ia3" (ones) or "vera" (frozen, shared
            A and B).
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        use_gating: Multiply the update by a learned gate between 0 and 1 per sequence, instead of alpha / r.
        use_dora: Train direction and magnitude of the weights apart (DoRA).
        vera_d: Start of VeRA's inner vector, a float; None for no VeRA.
        vera_b: Start of VeRA's outer vector, a float; None for no VeRA.
        dtype: Name of the adapter's torch dtype, such as "bfloat16"; None for the default.
    Raises:
        ConfigError: a value is of another type or outside its range, or "scale" is asked with a rank or
            dropout.
    """

    architecture: str | None = "lora"
    selfattn_lora: bool = True
    intermediate_lora: bool = False
    output_lora: bool = False
    leave_out: list[int] = field(default_factory=list)
    r: int = 8
    alpha: float = 8
    dropout: float = 0.0
    attn_matrices: list[str] = field(default_factory=lambda: ["q", "v"])
    composition_mode: str = "add"
    init_weights: str = "lora"
    init_weights_seed: int | None = None
    use_gating: bool = False
    use_dora: bool = False
    vera_d: float | None = None
    vera_b: float | None = None
    dtype: str | None = None

    rules: ClassVar[Mapping[str, Rule]] = {
        "selfattn_lora": flag,
        "intermediate_lora": flag,
        "output_lora": flag,
        "leave_out": layer_numbers,
        "r": integer(1),
        "alpha": real,
        "dropout": probability,
        "attn_matrices": list_of(text),
        "composition_mode": one_of("add", "scale"),
        "init_weights": one_of("lora", "bert", "ia3", "vera"),
        "init_weights_seed": seed,
        "use_gating": flag,
        "use_dora": flag,
        "vera_d": nothing | decimal,
        "vera_b": nothing | decimal,
        "dtype": dtype_name,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.composition_mode == "scale" and self.r != 1:
            raise self._error("r", "With composition_mode 'scale' it can only be 1.")
        if self.composition_mode == "scale" and self.dropout:
            raise self._error("dropout", "With composition_mode 'scale' it can only be 0.")
        idle = [name for name in self.attn_matrices if name not in ("q", "k", "v")]
        if idle:
            warnings.warn(
                f"{type(self).__name__}: attn_matrices has {idle}, which adapt nothing. "
                "Allowed: 'q', 'k', 'v'.",
                stacklevel=4,
            )


@dataclass(eq=False)
class DoRAConfig(LoRAConfig):
    """LoRA that trains the direction and the magnitude of the weights apart.

        y = m / ||W + B A|| * (W x + b + (alpha / r) * B A x)

    Paper: Liu et al. 2024, arXiv:2402.09353. Fields as in `LoRAConfig`.
    """

    use_dora: bool = True
