"""ReFT: edits of the hidden states at a few positions, inside a small subspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from adapters.methods.config import (
    AdapterConfig,
    Rule,
    activation,
    dtype_name,
    flag,
    integer,
    layer_numbers,
    nothing,
    one_of,
    probability,
    seed,
)


@dataclass(eq=False)
class ReftConfig(AdapterConfig):
    """Edits the output of layers at the first and last positions of the sequence.

        h' = h + R^T (act(W h + b) - R h)

    Paper: Wu et al. 2024, arXiv:2404.03592.

    Args:
        layers: Layers that are edited, counted from 0, or "all".
        prefix_positions: Edited positions at the start of the sequence, a count, at least 0.
        suffix_positions: Edited positions at the end of the sequence, a count, at least 0.
        r: Dimensions of the subspace, at least 1.
        orthogonality: Keep the rows of R orthonormal.
        tied_weights: Use the same edit for the start and the end.
        dropout: Probability in [0, 1], applied to the edited states.
        non_linearity: Activation, by its name in Transformers; None for none.
        dtype: Name of the adapter's torch dtype, such as "bfloat16"; None for the default.
        output_reft: Adapt at all; tells unions that this method acts on layer outputs.
        init_weights_seed: Seed set before each module is initialised; None leaves the generator alone.
        subtract_projection: Subtract R h as in the formula. Written to files only if False.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    layers: str | list[int]
    prefix_positions: int
    suffix_positions: int
    r: int
    orthogonality: bool
    tied_weights: bool = False
    dropout: float = 0.05
    non_linearity: str | None = None
    dtype: str | None = None
    architecture: str | None = "reft"
    output_reft: bool = True
    init_weights_seed: int | None = None
    subtract_projection: bool = True

    rules: ClassVar[Mapping[str, Rule]] = {
        "layers": one_of("all") | layer_numbers,
        "prefix_positions": integer(0),
        "suffix_positions": integer(0),
        "r": integer(1),
        "orthogonality": flag,
        "tied_weights": flag,
        "dropout": probability,
        "non_linearity": nothing | activation,
        "dtype": dtype_name,
        "output_reft": flag,
        "init_weights_seed": seed,
        "subtract_projection": flag,
    }

    def _written(self) -> list[str]:
        return [
            name
            for name in super()._written()
            if name != "subtract_projection" or not self.subtract_projection
        ]


@dataclass(eq=False)
class LoReftConfig(ReftConfig):
    """ReFT in a subspace with orthonormal basis.

        h' = h + R^T (W h + b - R h),   R R^T = I

    Paper: Wu et al. 2024, arXiv:2404.03592, equation 2. Fields as in `ReftConfig`.
    """

    layers: str | list[int] = "all"
    prefix_positions: int = 3
    suffix_positions: int = 0
    r: int = 1
    orthogonality: bool = True


@dataclass(eq=False)
class NoReftConfig(ReftConfig):
    """ReFT in a subspace whose basis need not be orthonormal.

        h' = h + R^T (W h + b - R h)

    Paper: Wu et al. 2024, arXiv:2404.03592. Fields as in `ReftConfig`.
    """

    layers: str | list[int] = "all"
    prefix_positions: int = 3
    suffix_positions: int = 0
    r: int = 1
    orthogonality: bool = False


@dataclass(eq=False)
class DiReftConfig(ReftConfig):
    """ReFT that only adds: LoRA on hidden states.

        h' = h + R^T (W h + b)

    Paper: Wu et al. 2024, arXiv:2404.03592, equation 3. Fields as in `ReftConfig`.
    """

    layers: str | list[int] = "all"
    prefix_positions: int = 3
    suffix_positions: int = 0
    r: int = 1
    orthogonality: bool = False
    subtract_projection: bool = False
