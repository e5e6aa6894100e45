"""Is the average of adapters what its formula says?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.errors import AdapterNameError, MergeError
from tests.contract.cases import CONFIGS, carrying, every_pair
from tests.tiny import build, infer, inputs, perturb


def trained(name: str, method: str, count: int = 3) -> Any:
    model = carrying(name, *[method] * count)
    for i in range(count):
        perturb(model, "abc"[i], seed=i)
    return model


def own(model: Any, adapter: str) -> list[Tensor]:
    return [t for part in model._engine.parts[adapter] for t in part.module.state_dict().values()]


@every_pair(names=("bert", "bart"))
def test_linear(method: str, name: str) -> None:
    model = trained(name, method)
    before = [own(model, adapter) for adapter in "abc"]
    expected = [(1 * a + 2 * b + 5 * c) / 8 for a, b, c in zip(*before)]
    state = torch.random.get_rng_state()
    model.average_adapter("avg", ["a", "b", "c"], weights=[1, 2, 5])
    assert torch.equal(torch.random.get_rng_state(), state)
    found = own(model, "avg")
    assert len(found) == len(expected) > 0
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected))
    assert all(torch.equal(x, y) for adapter, old in zip("abc", before) for x, y in zip(own(model, adapter), old))
    assert model.adapters_config.get("avg") == CONFIGS[method]
    assert model.active_adapters is None
    model.average_adapter("same", ["a"], set_active=True)
    of_one = infer(model, inputs(name))
    model.set_active_adapters("a")
    assert torch.equal(of_one, infer(model, inputs(name)))


def test_weights() -> None:
    model = trained("bert", "lora")
    a, b = own(model, "a")[0], own(model, "b")[0]
    for kwargs, expected in (
        ({}, (a + b) / 2),
        ({"weights": [3, 1]}, 0.75 * a + 0.25 * b),
        ({"weights": [3, 1], "normalize_weights": False}, 3 * a + b),
        ({"weights": [1, -3], "normalize_weights": False}, a - 3 * b),
        ({"normalize_weights": False}, (a + b) / 2),
    ):
        model.average_adapter("avg", ["a", "b"], overwrite_ok=True, **kwargs)
        assert torch.allclose(own(model, "avg")[0], expected, atol=1e-6)
    model.average_adapter("avg", {"a": 3, "b": 1}, overwrite_ok=True)
    assert torch.allclose(own(model, "avg")[0], 0.75 * a + 0.25 * b, atol=1e-6)
    model.average_adapter("a", ["a", "b"], overwrite_ok=True, set_active=True)
    assert torch.allclose(own(model, "a")[0], (a + b) / 2, atol=1e-6)
    assert repr(model.active_adapters) == "Stack[a]"


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_negated_b(name: str) -> None:
    model = trained(name, "lora_everywhere", 2)
    model.average_adapter("avg", ["a", "b"], [1, -0.5], "lora_linear_only_negate_b", normalize_weights=False)
    for part, one, other in zip(*(model._engine.parts[adapter] for adapter in ("avg", "a", "b"))):
        avg, a, b = part.module, one.module, other.module
        assert torch.allclose(avg.lora_A, a.lora_A + 0.5 * b.lora_A, atol=1e-6)
        assert torch.allclose(avg.lora_B, a.lora_B - 0.5 * b.lora_B, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_svd(name: str) -> None:
    model = trained(name, "lora_everywhere", 2)
    model.average_adapter("avg", ["a", "b"], [0.3, 0.7], "lora_delta_w_svd", svd_rank=3)
    config = model.adapters_config.get("avg")
    assert (config.r, config.alpha) == (3, 6)
    for part, one, other in zip(*(model._engine.parts[adapter] for adapter in ("avg", "a", "b"))):
        avg, a, b = part.module, one.module, other.module
        delta = 0.3 * a.lora_B @ a.lora_A + 0.7 * b.lora_B @ b.lora_A
        assert (avg.lora_A.shape[0], avg.lora_B.shape[1]) == (3, 3)
        rest = torch.linalg.matrix_norm(delta - avg.lora_B @ avg.lora_A)
        best = torch.linalg.svdvals(delta)[3:].norm()
        assert torch.isclose(rest, best, rtol=1e-4, atol=1e-5)
    model.average_adapter("whole", ["a", "b"], [0.3, 0.7], "lora_delta_w_svd", svd_rank=8)
    whole, one, other = (model._engine.parts[adapter][0].module for adapter in ("whole", "a", "b"))
    delta = 0.3 * one.lora_B @ one.lora_A + 0.7 * other.lora_B @ other.lora_A
    assert torch.allclose(whole.lora_B @ whole.lora_A, delta, atol=1e-5)


SVD: dict[str, Any] = {"combine_strategy": "lora_delta_w_svd", "svd_rank": 2}
NEGATE: dict[str, Any] = {"combine_strategy": "lora_linear_only_negate_b"}
REFUSED: list[Any] = [
    ("lora", {"adapter_list": []}, "no adapters"),
    ("lora", {"weights": [1]}, "1 weights for 2"),
    ("lora", {"weights": [1, -1]}, "sum to zero"),
    ("lora", {"combine_strategy": "geometric"}, "combine_strategy 'geometric'"),
    ("lora", {"combine_strategy": "lora_delta_w_svd"}, "svd_rank"),
    ("lora", {**SVD, "svd_rank": 0}, "svd_rank"),
    ("lora", {**SVD, "svd_rank": 99}, "largest rank"),
    ("seq_bn", SVD, "is for LoRA"),
    ("prefix_tuning", NEGATE, "is for LoRA"),
    ("mam", NEGATE, "is for LoRA"),
    ("dora", NEGATE, "m.weight"),
    ("dora", SVD, "m.weight"),
    ("ia3", SVD, "is for LoRA"),
    ("vera", NEGATE, "vera_"),
]


@pytest.mark.parametrize(("method", "kwargs", "message"), REFUSED)
def test_what_cannot_be_averaged(method: str, kwargs: dict[str, Any], message: str) -> None:
    model = trained("bert", method, 2)
    before = sorted(model.state_dict())
    with pytest.raises(MergeError, match=message):
        model.average_adapter("avg", **{"adapter_list": ["a", "b"], **kwargs})
    assert sorted(model.state_dict()) == before
    assert list(model.adapters_config) == ["a", "b"]


def test_fused_projections_have_no_svd() -> None:
    model = trained("gpt2", "lora", 2)
    with pytest.raises(MergeError, match="fused"):
        model.average_adapter("avg", ["a", "b"], **SVD)


def test_configs_that_differ() -> None:
    model = build("bert")
    model.add_adapter("a", config="lora[r=4]")
    model.add_adapter("b", config="lora[r=4,alpha=2]")
    model.add_adapter("c", config="lora[r=4,dropout=0.5,init_weights='bert']")
    model.add_adapter("compacter++", config="compacter++[reduction_factor=4,phm_dim=2]")
    model.add_adapter("dense", config="seq_bn[reduction_factor=4,phm_dim=2,non_linearity='gelu']")
    for names in (["a", "b"], ["compacter++", "dense"]):
        with pytest.raises(MergeError, match="different configs"):
            model.average_adapter("avg", names)
    model.average_adapter("avg", ["a", "c"])
    assert model.adapters_config.get("avg").dropout == 0


def test_names() -> None:
    model = trained("bert", "lora", 2)
    with pytest.raises(AdapterNameError, match="'x'"):
        model.average_adapter("avg", ["a", "x"])
    with pytest.raises(AdapterNameError, match="already"):
        model.average_adapter("a", ["a", "b"])
    with pytest.raises(AdapterNameError, match="cannot name"):
        model.average_adapter("a.b", ["a", "b"])
