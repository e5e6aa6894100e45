"""Do LoRAs that are combined change weights as PEFT's `add_weighted_adapter` has it, where both compute the same?"""

from __future__ import annotations

from functools import partial
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.merging import algorithm_of
from adapters.merging.update import Update
from tests.merging.test_algorithms import SEED
from tests.tiny import build

peft = pytest.importorskip("peft")

RANKS, ALPHAS, TARGET = {"one": 2, "two": 3}, {"one": 4, "two": 3}, "query"


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A model of PEFT with two LoRAs at one linear map."""
    base = build("bert", adapted=False, num_hidden_layers=1)
    model = None
    for i, name in enumerate(RANKS):
        torch.manual_seed(i)
        options = {"r": RANKS[name], "lora_alpha": ALPHAS[name], "init_lora_weights": False}
        config = peft.LoraConfig(target_modules=[TARGET], **options)
        if model is None:
            model = peft.get_peft_model(base, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    return model


@pytest.fixture(autouse=True)
def seeded(theirs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT draws its random numbers from the same start as we, after the new adapter has been made."""
    for name in ("_svd_generalized_task_arithmetic_weighted_adapter", "_generalized_task_arithmetic_weighted_adapter"):
        monkeypatch.setattr(theirs.base_model, name, partial(_from_seed, getattr(theirs.base_model, name)))


def _from_seed(method: Any, *args: Any, **kwargs: Any) -> Any:
    torch.manual_seed(SEED)
    return method(*args, **kwargs)


def layer(model: Any) -> Any:
    return next(module for name, module in model.named_modules() if name.endswith(TARGET))


def delta(model: Any, name: str) -> Tensor:
    return layer(model).get_delta_weight(name).detach()  # type: ignore[no-any-return]


@pytest.fixture
def ours(theirs: Any) -> Any:
    """The same two, here."""
    model = build("bert", num_hidden_layers=1)
    for name in RANKS:
        model.add_adapter(name, config=f"lora[r={RANKS[name]},alpha={ALPHAS[name]},places='attn.q']")
        (part,) = model._engine.parts[name]
        part.module.lora_A.data.copy_(layer(theirs).lora_A[name].weight)
        part.module.lora_B.data.copy_(layer(theirs).lora_B[name].weight)
    return model


BOTH: list[tuple[str, dict[str, Any], str, dict[str, Any], tuple[float, float]]] = [
    ("cat", {}, "cat", {}, (0.7, -0.5)),
    ("svd", {"svd_rank": 3}, "lora_delta_w_svd", {"svd_rank": 3}, (0.7, -0.5)),
    ("ties_svd", {"density": 0.25}, "ties", {"density": 0.25}, (1.0, 1.0)),
    ("ties_svd", {"density": 0.5, "svd_rank": 32}, "ties", {"density": 0.5, "svd_rank": 32}, (0.5, 0.5)),
    (
        "ties_svd",
        {"density": 0.5, "majority_sign_method": "frequency"},
        "ties",
        {"density": 0.5, "majority": "frequency"},
        (1.0, 0.5),
    ),
    ("magnitude_prune_svd", {"density": 0.25}, "magnitude_prune", {"density": 0.25}, (0.7, -0.5)),
    ("dare_linear_svd", {"density": 0.5}, "dare_linear", {"density": 0.5, "seed": SEED}, (0.7, -0.5)),
    ("dare_ties_svd", {"density": 0.5}, "dare_ties", {"density": 0.5, "seed": SEED}, (1.0, 1.0)),
]


@pytest.mark.parametrize(("type_", "options", "strategy", "own", "weights"), BOTH)
def test_products(
    type_: str,
    options: dict[str, Any],
    strategy: str,
    own: dict[str, Any],
    weights: tuple[float, float],
    theirs: Any,
    ours: Any,
) -> None:
    theirs.add_weighted_adapter(list(RANKS), list(weights), "x", combination_type=type_, **options)
    want = delta(theirs, "x")
    theirs.delete_adapter("x")
    ours.average_adapter("x", list(RANKS), weights, strategy, normalize_weights=False, **own)
    (part,) = ours._engine.parts["x"]
    torch.testing.assert_close(part.module.delta_weight().detach(), want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("type_", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_of_a_and_b_apart(type_: str, theirs: Any) -> None:
    """What PEFT does to A and B apart is what the same algorithm does to any tensors, with weights sqrt(w s).

    They are the same for both here: PEFT lets entries elect their sign without their weights.
    """
    options = {} if type_ == "linear" else {"density": 0.5}
    same = {name: peft.LoraConfig(r=2, lora_alpha=5, target_modules=[TARGET]) for name in RANKS}
    for i, (name, config) in enumerate(same.items()):
        theirs.add_adapter(f"{name}2", config)
        torch.manual_seed(i)
        layer(theirs).lora_B[f"{name}2"].weight.data.normal_()
    theirs.add_weighted_adapter(["one2", "two2"], [0.5, 0.5], "x", combination_type=type_, **options)
    found = layer(theirs)
    algorithm = algorithm_of(type_, {**options, **({"seed": SEED} if "dare" in type_ else {})})
    weights = [sqrt(0.5 * found.scaling[name]) for name in ("one2", "two2")]
    random = torch.Generator().manual_seed(SEED)
    made = [
        algorithm.combine([matrices[name].weight.detach() for name in ("one2", "two2")], weights, random)
        for matrices in (found.lora_A, found.lora_B)
    ]
    torch.testing.assert_close(Update(*made).matrix(), delta(theirs, "x"), atol=1e-5, rtol=1e-4)
    for name in ("one2", "two2", "x"):
        theirs.delete_adapter(name)
