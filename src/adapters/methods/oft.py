"""OFT: a trained rotation of what a linear map reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adapters.errors import ConfigError
from adapters.methods.base import InputAdapter, LinearAdapter
from adapters.methods.config import AdapterConfig, PlacedConfig, Rule, flag, integer, nothing, number, probability
from adapters.methods.derived import Derived
from adapters.methods.parts import Watching, matched
from adapters.methods.places import chosen_roles
from adapters.methods.stacking import RowGroups, select
from adapters.methods.state import HiddenState
from adapters.sites.site import LinearSite


@dataclass(eq=False)
class OFTConfig(PlacedConfig):
    """Rotates the input of linear layers, block by block: angles between the neurons of a layer stay what they were.

        y = W R^T x + b,    R = diag(R_1, ..., R_n),    R_i = (I + Q_i)(I - Q_i)^-1,    Q_i^T = -Q_i

    Paper: Qiu et al. 2023, arXiv:2306.07280; by its input and with the series: Qiu et al. 2025, arXiv:2506.19847. Other
    fields as in `PlacedConfig`; a fused projection is rotated as a whole or not at all.

    Args:
        block_size: Side of every R_i, at least 2. It must divide the width of each adapted layer's input.
        block_share: Use the same R_i in all blocks of a layer.
        neumann_terms: k of the series R_i = (I + Q_i)(I + Q_i + ... + Q_i^k), which stands for the inverse where Q_i is
            small, and is faster to train; None for the inverse itself. (PEFT's count of terms is k + 2.)
        dropout: Probability in [0, 1] that a block is not rotated, in training.
        eps: COFT, of the first paper: ||Q_i||_F <= eps / sqrt(n) for all n blocks (1 if they share one); None for no
            bound. What a step of training has taken beyond is scaled back.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "oft"
    block_size: int = 32
    block_share: bool = False
    neumann_terms: int | None = None
    dropout: float = 0.0
    eps: float | None = None
    places: str | list[str] = field(default_factory=lambda: ["all-linear"])

    rules: ClassVar[Mapping[str, Rule]] = {
        "block_size": integer(2),
        "block_share": flag,
        "neumann_terms": nothing | integer(1),
        "dropout": probability,
        "eps": nothing | number(0, above=True),
    }


class OFT(InputAdapter):
    """Orthogonal fine-tuning: a rotation of the input of a linear map.

        y = W R^T x + b,    R = diag(R_1, ..., R_n),    R_i = (I + Q_i)(I - Q_i)^-1

    Q_i [b, b] is skew-symmetric, of the block size b = I / n. Trained is what stands above its diagonal, row by row:
    Q [n, b (b - 1) / 2], or [1, ...] if all blocks share it; it starts at 0. In a `Stack` the next adapter rotates
    what the last one has rotated.

    Paper: Qiu et al. 2023, arXiv:2306.07280. On the input side: Qiu et al. 2025, arXiv:2506.19847.
    """

    paper = "arXiv:2306.07280"
    config_class = OFTConfig
    titles: ClassVar[Mapping[str, str]] = {"oft": "OFT"}
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"oft": OFTConfig()}

    def __init__(self, config: OFTConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name)
        self.size, width = config.block_size, site.in_features
        if width % self.size:
            raise ConfigError(
                f"block_size={self.size} does not divide the width {width} of the input of {site.path}. Choose a "
                "block_size that divides it, or other places."
            )
        roles = chosen_roles(config, site)
        if len(roles) < len(site.parts):
            raise ConfigError(
                f"places names {', '.join(roles)} of {site.path}, which computes {', '.join(site.parts)} from one "
                "input. A rotation of that input acts on all of them: name all, or none."
            )
        self.count = width // self.size
        self.Q = nn.Parameter(torch.zeros(1 if config.block_share else self.count, self.size * (self.size - 1) // 2))

    def bind(self, shared: nn.Module | None) -> None:
        super().bind(shared)
        self.rotation = Derived(self._rotation, *self.sources())

    def bounded(self, stored: Tensor) -> Tensor:
        """Q within the bound of COFT. What stands above the diagonal has 1 / sqrt(2) of the norm of Q_i."""
        if self.config.eps is None:
            return stored
        bound = self.config.eps / len(stored) ** 0.5
        norms = 2**0.5 * torch.linalg.vector_norm(stored, dim=1, keepdim=True)
        return torch.where(norms <= bound, stored, bound * stored / norms)

    def _rotation(self) -> Tensor:
        """R_1, ..., R_n, [n or 1, b, b]; in single precision at least."""
        stored = self.tensor("Q")
        if self.config.eps is not None:  # steps of training go on from within the bound
            with torch.no_grad():
                bounded = self.bounded(stored)
                if self.training and isinstance(stored, nn.Parameter):
                    stored.copy_(bounded)
            stored = stored + (bounded - stored).detach()
        with torch.autocast(stored.device.type, enabled=False):
            upper = stored.to(torch.promote_types(stored.dtype, torch.float32))
            rows, columns = torch.triu_indices(self.size, self.size, 1, device=stored.device)
            q = upper.new_zeros(len(upper), self.size, self.size)
            q[:, rows, columns] = upper
            q = q - q.transpose(1, 2)
            eye = torch.eye(self.size, device=q.device, dtype=q.dtype)
            if (terms := self.config.neumann_terms) is None:
                return torch.linalg.solve(eye - q, eye + q).to(stored.dtype)  # type: ignore[no-any-return]
            series = eye
            for _ in range(terms):
                series = eye + q @ series
            return ((eye + q) @ series).to(stored.dtype)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """R^T x, for x [B, S, I]."""
        rotation: Tensor = self.rotation()
        rotation = rotation.expand(self.count, -1, -1)
        if self.training and self.config.dropout:
            kept = torch.rand(self.count, 1, 1, device=x.device) >= self.config.dropout
            rotation = torch.where(kept, rotation, torch.eye(self.size, device=x.device, dtype=rotation.dtype))
        blocks = matched(x, rotation).unflatten(-1, (self.count, self.size))
        return torch.einsum("...nb,nbc->...nc", blocks, rotation).flatten(-2).to(x.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        rotation = self.rotation().expand(self.count, -1, -1).to(weight.dtype)
        blocks = weight.unflatten(-1, (self.count, self.size))
        return torch.einsum("onc,nbc->onb", blocks, rotation).flatten(-2), bias

    @property
    def signature(self) -> tuple[Any, ...] | None:
        stored = self.tensor("Q")
        return None if self.config.dropout else (OFT, stored.shape, stored.dtype, self.config.neumann_terms)

    @classmethod
    def stacked(cls, members: Sequence[OFT], groups: RowGroups) -> OFT:
        return StackedOFT(members, groups)


class StackedOFT(OFT):
    """OFT with other rotations for every row."""

    members: tuple[OFT, ...]

    def __init__(self, members: Sequence[OFT], groups: RowGroups) -> None:
        first = members[0]
        LinearAdapter.__init__(self, first.config, first.site, "+".join(m.name for m in members))
        self.size, self.count = first.size, first.count
        self.__dict__["members"], self.groups = tuple(members), groups
        self.rotation, self.watching = Derived(self._stack, *members), Watching(*members)

    def _stack(self) -> Tensor:
        """The rotations of all members, [N, n or 1, b, b]."""
        rotations = [member.rotation() for member in self.members]
        if self.groups.spare:
            none = torch.eye(self.size, dtype=rotations[0].dtype, device=rotations[0].device)
            rotations.append(none.expand_as(rotations[0]))
        return torch.stack(rotations)

    @property
    def spares(self) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        if self.watching and not torch.compiler.is_compiling():
            return self.groups.apart(HiddenState(x), self.members).h
        rotation: Tensor = self.rotation()
        flat, index = self.groups.arrange(matched(x, rotation))
        blocks = flat.unflatten(-1, (self.count, self.size))
        rotation = select(rotation, index).expand(-1, self.count, -1, -1)
        return torch.einsum("gmnb,gnbc->gmnc", blocks, rotation).reshape(x.shape).to(x.dtype)
