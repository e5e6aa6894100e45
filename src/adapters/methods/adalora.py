"""AdaLoRA: low-rank updates that share a budget of ranks, moved in training to where they matter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adapters.errors import AdapterNameError, ConfigError
from adapters.methods.config import AdapterConfig, Rule, integer, number, real
from adapters.methods.derived import Derived
from adapters.methods.places import output_columns
from adapters.methods.weight_update import Factors, WeightUpdate, WeightUpdateConfig, wants_site
from adapters.sites.site import LinearSite


@dataclass(eq=False)
class AdaLoRAConfig(WeightUpdateConfig):
    """LoRA in the form of a singular value decomposition, whose least important values are zeroed in training.

        y = W x + b + (alpha / r) * P diag(e) Q x

    A `RankAllocator` moves the ranks while training. Paper: Zhang et al. 2023, arXiv:2303.10512. Other fields as in
    `WeightUpdateConfig`.

    Args:
        r: Rank at first, at least 1.
        target_r: Rank in the end, on average over all layers, at least 1; from r on, none is taken away.
        alpha: Numerator of the scaling alpha / r.
        initial_steps: Steps before ranks are taken away, at least 0.
        final_steps: Steps in the end without any change, at least 0.
        interval: Steps between two allocations, at least 1.
        beta1: Smoothing of sensitivities, in [0, 1).
        beta2: Smoothing of their uncertainty, in [0, 1).
        orthogonality: Weight of the loss that keeps P and Q orthogonal, at least 0.
    Raises:
        ConfigError: a value is of another type or outside its range.
    """

    architecture: str | None = "adalora"
    r: int = 12
    target_r: int = 8
    alpha: float = 12
    initial_steps: int = 0
    final_steps: int = 0
    interval: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5

    rules: ClassVar[Mapping[str, Rule]] = {
        "r": integer(1),
        "target_r": integer(1),
        "alpha": real,
        "initial_steps": integer(0),
        "final_steps": integer(0),
        "interval": integer(1),
        "beta1": number(0, 1, below=True),
        "beta2": number(0, 1, below=True),
        "orthogonality": number(0),
    }


class AdaLoRA(WeightUpdate):
    """Low-rank update as a singular value decomposition.

        y = W x + b + (alpha / r) * P diag(e) Q x            Q [r, I], e [r], P [O, r]

    e starts at zero; a rank that was taken away has e = 0. Q and P are kept near orthogonal by a loss.

    Paper: Zhang et al. 2023, arXiv:2303.10512.
    """

    paper = "arXiv:2303.10512"
    titles: ClassVar[Mapping[str, str]] = {"adalora": "AdaLoRA"}
    config_class = AdaLoRAConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"adalora": AdaLoRAConfig()}
    per_expert = looks_up = False  # ranks are moved between linear maps

    def __init__(self, config: AdaLoRAConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name, output_columns(config, site))
        self.scaling, rank = config.alpha / config.r, config.r * len(self.columns)
        self.lora_A = nn.Parameter(0.02 * torch.randn(rank, self.in_features))
        self.lora_E = nn.Parameter(torch.zeros(rank, 1))
        self.lora_B = nn.Parameter(0.02 * torch.randn(self.width, config.r))
        self._matrices = Derived(self._scale, self)

    @classmethod
    def acts_at(cls, config: AdaLoRAConfig, site: LinearSite) -> bool:
        return wants_site(config, site)

    def factors(self) -> Factors:
        return self._matrices()  # type: ignore[no-any-return]

    def _scale(self) -> Factors:
        return self.tensor("lora_E") * self.tensor("lora_A"), self.tensor("lora_B")


class RankAllocator:
    """Moves the ranks of one AdaLoRA adapter while it is trained.

        allocator = RankAllocator(model, "task", steps=1000)
        for batch in batches:
            loss = model(**batch).loss + allocator.loss()
            loss.backward()
            optimizer.step()
            allocator.step()             # needs the gradients
            optimizer.zero_grad()

    A triplet (row of Q, value, column of P) is as important as its entries: sensitivity |w dL/dw| times uncertainty,
    both smoothed. Of all triplets of the adapter as many are kept as the budget of this step allows; the others'
    values are zeroed, and may come back. The budget falls from all ranks to `target_r` per part with the third power of
    what remains of the steps.

    Args:
        model: The model with the adapter.
        name: Name of the adapter.
        steps: Steps of the whole training.
    Raises:
        AdapterNameError: the model has no AdaLoRA adapter of this name.
        ConfigError: the training is no longer than the first and last steps in which nothing is taken away.
    """

    def __init__(self, model: nn.Module, name: str, steps: int) -> None:
        self.modules = [m for m in model.modules() if isinstance(m, AdaLoRA) and m.name == name]
        if not self.modules:
            raise AdapterNameError(f"There is no AdaLoRA adapter {name!r} in this {type(model).__name__}.")
        self.config: AdaLoRAConfig = self.modules[0].config
        if steps <= self.config.initial_steps + self.config.final_steps:
            raise ConfigError(
                f"A training of {steps} steps has none between the first {self.config.initial_steps} and the last "
                f"{self.config.final_steps}, in which ranks are not taken away. Train longer, or lower initial_steps "
                "and final_steps."
            )
        self.steps, self.done = steps, 0
        self.ranks: int = sum(len(module.lora_E) for module in self.modules)
        self.target: int = sum(len(module.columns) for module in self.modules) * min(
            self.config.target_r, self.config.r
        )
        self._smoothed: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}

    def budget(self, step: int) -> int:
        """Triplets that are left after `step` steps."""
        first, last = self.config.initial_steps, self.config.final_steps
        if step <= first:
            return self.ranks
        if step > self.steps - last:
            return self.target
        remaining = 1 - (step - first) / (self.steps - last - first)
        return self.target + int((self.ranks - self.target) * remaining * remaining * remaining)

    def loss(self) -> Tensor:
        """What keeps Q and P orthogonal: mean of ||Q Q^T - 1|| and ||P^T P - 1||, times `orthogonality`."""
        products = []
        for module in self.modules:
            rank = self.config.r
            products += [q @ q.t() for q in module.lora_A.split(rank)]
            products += [p.t() @ p for p in module.lora_B.split(module.widths)]
        ones = torch.eye(self.config.r, dtype=products[0].dtype, device=products[0].device)
        return self.config.orthogonality * torch.stack([torch.linalg.norm(p - ones) for p in products]).mean()

    @torch.no_grad()
    def step(self) -> None:
        """Count a step: note how important every triplet is, and zero the least important beyond the budget."""
        self.done += 1
        if self.done < self.steps - self.config.final_steps:
            for module in self.modules:
                for parameter in (module.lora_A, module.lora_E, module.lora_B):
                    self._note(parameter)
        first, last = self.config.initial_steps, self.steps - self.config.final_steps
        if self.done > last or (self.done > first and self.done % self.config.interval == 0):
            self._allocate(self.budget(self.done))

    @torch.no_grad()
    def _note(self, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            return
        sensitivity = (parameter * parameter.grad).abs()
        mean, uncertainty = self._smoothed.get(parameter) or (torch.zeros_like(sensitivity),) * 2
        beta1, beta2 = self.config.beta1, self.config.beta2
        mean = beta1 * mean + (1 - beta1) * sensitivity
        self._smoothed[parameter] = mean, beta2 * uncertainty + (1 - beta2) * (sensitivity - mean).abs()

    def _importance(self, parameter: nn.Parameter) -> Tensor:
        mean, uncertainty = self._smoothed.get(parameter) or (torch.zeros_like(parameter),) * 2
        return mean * uncertainty

    def scores(self, module: AdaLoRA) -> Tensor:
        """How important every triplet of `module` is, [n r]."""
        columns = self._importance(module.lora_B).split(module.widths)
        ups = torch.cat([part.mean(0) for part in columns])
        return self._importance(module.lora_E).view(-1) + self._importance(module.lora_A).mean(1) + ups

    @torch.no_grad()
    def _allocate(self, budget: int) -> None:
        scores = [self.scores(module) for module in self.modules]
        if (taken := self.ranks - budget) <= 0:
            return
        threshold = torch.cat(scores).kthvalue(taken).values
        for module, own in zip(self.modules, scores):
            module.lora_E.masked_fill_((own <= threshold)[:, None], 0.0)
