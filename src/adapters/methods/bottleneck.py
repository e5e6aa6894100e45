"""Bottleneck adapters: a small feed-forward block behind a sub-block of each layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from adapters.methods.config import (
    AdapterConfig,
    ConfigT,
    Rule,
    activation,
    decimal,
    flag,
    integer,
    layer_numbers,
    nothing,
    number,
    one_of,
    per_layer,
    probability,
    seed,
)


@dataclass(eq=False)
class BnConfig(AdapterConfig):
    """A bottleneck adapter with every choice open. The subclasses are the designs from papers.

        out = h + scaling * W_up act(W_down h + b_down) + b_up

    Papers: Houlsby et al. 2019, arXiv:1902.00751 (two per layer); Pfeiffer et al. 2020, arXiv:2005.00052 (one
    per layer, invertible adapters); He et al. 2022, arXiv:2110.04366 (parallel); Mahabadi et al. 2021,
    arXiv:2106.04647 (phm fields).

    Args:
        mh_adapter: Adapt behind the attention.
        output_adapter: Adapt behind the feed-forward block.
        reduction_factor: hidden_size / bottleneck width, a number above 0; below 1 the adapter is wider than
            the model. A mapping from layer number to factor sets layers apart, its key "default" the others.
        non_linearity: Activation in the bottleneck, by its name in Transformers.
        original_ln_before: Apply the layer's own residual and norm before the adapter.
        original_ln_after: Apply the layer's own residual and norm after the adapter.
        ln_before: Start the adapter with a norm of its own.
        ln_after: End the adapter with a norm of its own.
        init_weights: "bert" (normal, 0.02), "mam_adapter" (output starts at zero) or "houlsby" (truncated
            normal, 0.01).
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        is_parallel: Read the sub-block's input instead of its output, and add to its output.
        scaling: Factor of the adapter's output: a float, "learned" (one parameter) or "channel" (one per
            hidden unit).
        use_gating: Multiply the output by a learned gate between 0 and 1 per sequence.
        residual_before_ln: Take the adapter's residual before (True) or after (False) the layer's norm;
            "post_add" takes it after the layer's residual and before its norm. Acts with original_ln_before.
        adapter_residual_before_ln: Add the adapter's residual before its ln_after.
        inv_adapter: Invertible adapter behind the embeddings: "nice", "glow" or None.
        inv_adapter_reduction_factor: Half the embedding size / width of the invertible bottleneck, above 0.
        cross_adapter: Adapt behind the cross-attention.
        leave_out: Layers without adapter, counted from 0.
        dropout: Probability in [0, 1], applied to the adapter's output.
        phm_layer: Make both projections sums of Kronecker products (Compacter).
        phm_dim: Number of Kronecker products; must divide hidden size and bottleneck width.
        factorized_phm_W: Store the second factors as products of two thin matrices.
        shared_W_phm: Share the second factors between all layers.
        shared_phm_rule: Share the first factors ("rules") between all layers.
        factorized_phm_rule: Store the rules as products of two thin matrices.
        phm_c_init: Distribution from which rules start, "normal" or "uniform".
        phm_init_range: Standard deviation of normally distributed shared rules, above 0.
        learn_phm: Train the rules.
        hypercomplex_nonlinearity: Distribution from which the second factors start.
        phm_rank: Inner width of factorised matrices, at least 1.
        phm_bias: Add biases in phm layers.
        stochastic_depth: Probability in [0, 1) of leaving out the adapter for a row while training.
    Raises:
        ConfigError: a value is of another type or outside its range. `scaling` must be a float, not an int.
    """

    mh_adapter: bool
    output_adapter: bool
    reduction_factor: float | Mapping[str, float]
    non_linearity: str
    original_ln_before: bool = False
    original_ln_after: bool = True
    ln_before: bool = False
    ln_after: bool = False
    init_weights: str = "bert"
    init_weights_seed: int | None = None
    is_parallel: bool = False
    scaling: float | str = 1.0
    use_gating: bool = False
    residual_before_ln: bool | str = True
    adapter_residual_before_ln: bool = False
    inv_adapter: str | None = None
    inv_adapter_reduction_factor: float | None = None
    cross_adapter: bool = False
    leave_out: list[int] = field(default_factory=list)
    dropout: float = 0.0
    phm_layer: bool = False
    phm_dim: int = 4
    factorized_phm_W: bool = True
    shared_W_phm: bool = False
    shared_phm_rule: bool = True
    factorized_phm_rule: bool = False
    phm_c_init: str = "normal"
    phm_init_range: float = 0.0001
    learn_phm: bool = True
    hypercomplex_nonlinearity: str = "glorot-uniform"
    phm_rank: int = 1
    phm_bias: bool = True
    stochastic_depth: float = 0.0

    rules: ClassVar[Mapping[str, Rule]] = {
        "mh_adapter": flag,
        "output_adapter": flag,
        "reduction_factor": number(0, above=True) | per_layer(number(0, above=True)),
        "non_linearity": activation,
        "original_ln_before": flag,
        "original_ln_after": flag,
        "ln_before": flag,
        "ln_after": flag,
        "init_weights": one_of("bert", "mam_adapter", "houlsby"),
        "init_weights_seed": seed,
        "is_parallel": flag,
        "scaling": decimal | one_of("learned", "channel"),
        "use_gating": flag,
        "residual_before_ln": flag | one_of("post_add"),
        "adapter_residual_before_ln": flag,
        "inv_adapter": nothing | one_of("nice", "glow"),
        "inv_adapter_reduction_factor": nothing | number(0, above=True),
        "cross_adapter": flag,
        "leave_out": layer_numbers,
        "dropout": probability,
        "phm_layer": flag,
        "phm_dim": integer(1),
        "factorized_phm_W": flag,
        "shared_W_phm": flag,
        "shared_phm_rule": flag,
        "factorized_phm_rule": flag,
        "phm_c_init": one_of("normal", "uniform"),
        "phm_init_range": number(0, above=True),
        "learn_phm": flag,
        "hypercomplex_nonlinearity": one_of("phm", "glorot-normal", "glorot-uniform", "normal"),
        "phm_rank": integer(1),
        "phm_bias": flag,
        "stochastic_depth": number(0, 1, below=True),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inv_adapter is not None and self.inv_adapter_reduction_factor is None:
            raise self._error(
                "inv_adapter_reduction_factor", "With inv_adapter a number above 0 is needed, such as 2."
            )

    @classmethod
    def from_dict(cls: type[ConfigT], config: Mapping[str, Any]) -> ConfigT:
        """Reads a config dict, also from before invertible adapters had fields of their own."""
        old = config.get("invertible_adapter")
        config = {name: value for name, value in config.items() if name != "invertible_adapter"}
        if isinstance(old, Mapping):
            config["inv_adapter"] = old.get("block_type")
            config["inv_adapter_reduction_factor"] = old.get("reduction_factor")
        return super().from_dict(config)


@dataclass(eq=False)
class SeqBnConfig(BnConfig):
    """One adapter per layer, behind the feed-forward block.

        h = norm(h + x);  out = norm(W_up relu(W_down h + b_down) + b_up + h_before_norm + x)

    Paper: Pfeiffer et al. 2020, arXiv:2005.00052. Fields as in `BnConfig`.
    """

    original_ln_before: bool = True
    mh_adapter: bool = False
    output_adapter: bool = True
    non_linearity: str = "relu"
    reduction_factor: float | Mapping[str, float] = 16


@dataclass(eq=False)
class SeqBnInvConfig(SeqBnConfig):
    """`SeqBnConfig` with an invertible adapter behind the embeddings, for languages.

        y1 = x1 + F(x2);  y2 = x2 + G(y1)

    Paper: Pfeiffer et al. 2020, arXiv:2005.00052, section 4.1.2. Fields as in `BnConfig`.
    """

    inv_adapter: str | None = "nice"
    inv_adapter_reduction_factor: float | None = 2


@dataclass(eq=False)
class DoubleSeqBnConfig(BnConfig):
    """Two adapters per layer, behind the attention and behind the feed-forward block.

        out = norm(W_up swish(W_down h + b_down) + b_up + h + x)

    Paper: Houlsby et al. 2019, arXiv:1902.00751. Fields as in `BnConfig`.
    """

    original_ln_before: bool = False
    mh_adapter: bool = True
    output_adapter: bool = True
    non_linearity: str = "swish"
    reduction_factor: float | Mapping[str, float] = 16


@dataclass(eq=False)
class DoubleSeqBnInvConfig(DoubleSeqBnConfig):
    """`DoubleSeqBnConfig` with an invertible adapter behind the embeddings, for languages.

        y1 = x1 + F(x2);  y2 = x2 + G(y1)

    Paper: Pfeiffer et al. 2020, arXiv:2005.00052, section 4.1.2. Fields as in `BnConfig`.
    """

    inv_adapter: str | None = "nice"
    inv_adapter_reduction_factor: float | None = 2


@dataclass(eq=False)
class ParBnConfig(BnConfig):
    """One adapter per layer, beside the feed-forward block.

        out = norm(FFN(x) + x + scaling * (W_up relu(W_down x + b_down) + b_up))

    Paper: He et al. 2022, arXiv:2110.04366. Fields as in `BnConfig`.
    """

    init_weights: str = "mam_adapter"
    is_parallel: bool = True
    scaling: float | str = 4.0
    mh_adapter: bool = False
    output_adapter: bool = True
    non_linearity: str = "relu"
    reduction_factor: float | Mapping[str, float] = 2


@dataclass(eq=False)
class AdapterPlusConfig(BnConfig):
    """One adapter per layer of a vision transformer, behind the feed-forward block, scaled per channel.

        out = h + x + s * (W_up gelu(W_down (h + x) + b_down) + b_up)

    Paper: Steitz and Roth 2024, arXiv:2406.06820. Fields as in `BnConfig`.
    """

    original_ln_before: bool = True
    original_ln_after: bool = False
    residual_before_ln: bool | str = False
    stochastic_depth: float = 0.1
    init_weights: str = "houlsby"
    scaling: float | str = "channel"
    mh_adapter: bool = False
    output_adapter: bool = True
    non_linearity: str = "gelu"
    reduction_factor: float | Mapping[str, float] = 96
