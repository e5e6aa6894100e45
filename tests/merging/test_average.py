"""Is the average of adapters what its formula says?"""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from adapters import LoRAConfig
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
        ({"weights": numpy.array([3.0, 1.0])}, 0.75 * a + 0.25 * b),
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


def effect(module: Any) -> Any:
    """(alpha / r) B A of a LoRA, [O, I], from its tensors: per part of a fused projection, zero elsewhere."""
    a, b, rank = module.lora_A.detach(), module.lora_B.detach(), module.config.r
    result = torch.zeros(module.site.out_features, module.site.in_features)
    for i, columns in enumerate(module.columns):
        width = columns.stop - columns.start
        result[columns] = b[i * width : (i + 1) * width] @ a[i * rank : (i + 1) * rank]
    return module.config.alpha / rank * result


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_svd_averages_what_adapters_do(name: str) -> None:
    model = build(name)
    for i, (adapter, rank, alpha) in enumerate([("a", 4, 6), ("b", 2, 8), ("c", 1, -3)]):
        model.add_adapter(adapter, config=LoRAConfig(r=rank, alpha=alpha, attn_matrices=["q", "v"], output_lora=True))
        perturb(model, adapter, seed=i)
    shares = {"a": 0.3, "b": 0.6, "c": 0.1}
    for rank in (2, 7):
        model.average_adapter("avg", shares, combine_strategy="lora_delta_w_svd", svd_rank=rank, overwrite_ok=True)
        config = model.adapters_config.get("avg")
        assert config.r == rank
        for part, *others in zip(*(model._engine.parts[adapter] for adapter in ("avg", *shares))):
            want = sum(share * effect(other.module) for share, other in zip(shares.values(), others))
            got = effect(part.module)
            blocks = [(want[columns], got[columns]) for columns in part.module.columns]
            for exact, near in blocks:
                best = torch.linalg.svdvals(exact)[rank:].norm()
                assert torch.isclose(torch.linalg.matrix_norm(exact - near), best, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_svd_of_older_versions(name: str) -> None:
    model = trained(name, "lora_everywhere", 2)
    model.average_adapter("avg", ["a", "b"], [0.3, 0.7], "lora_delta_w_svd_unscaled", svd_rank=8)
    config = model.adapters_config.get("avg")
    assert (config.r, config.alpha) == (8, 6)
    for part, one, other in zip(*(model._engine.parts[adapter] for adapter in ("avg", "a", "b"))):
        avg, a, b = part.module, one.module, other.module
        delta = 0.3 * a.lora_B @ a.lora_A + 0.7 * b.lora_B @ b.lora_A
        assert torch.allclose(avg.lora_B @ avg.lora_A, delta, atol=1e-5)


SVD: dict[str, Any] = {"combine_strategy": "lora_delta_w_svd", "svd_rank": 2}
NEGATE: dict[str, Any] = {"combine_strategy": "lora_linear_only_negate_b"}
REFUSED: list[Any] = [
    ("lora", {"adapter_list": []}, "no adapters"),
    ("lora", {"weights": [1]}, "1 weights for 2"),
    ("lora", {"weights": [1, -1]}, "sum to zero"),
    ("lora", {"weights": [1, float("nan")]}, "no finite number"),
    ("lora", {"weights": [1, "1"]}, "no finite number"),
    ("lora", {"weights": 1}, "one weight per adapter"),
    ("lora", {"weights": {"a": 1, "b": 2}}, "one weight per adapter"),
    ("lora", {"combine_strategy": "geometric"}, "combine_strategy 'geometric'"),
    ("lora", {"combine_strategy": "lora_delta_w_svd"}, "svd_rank"),
    ("lora", {**SVD, "svd_rank": 0}, "svd_rank"),
    ("lora", {**SVD, "svd_rank": 99}, "largest rank"),
    ("seq_bn", SVD, "is for LoRA"),
    ("seq_bn", {"combine_strategy": "ties", "svd_rank": 2}, "svd_rank=2 is for LoRA"),
    ("lora", {"combine_strategy": "ties", "svd_rank": 99}, "largest rank"),
    ("prefix_tuning", NEGATE, "is for LoRA"),
    ("mam", NEGATE, "is for LoRA"),
    ("dora", NEGATE, "is for LoRA"),
    ("dora", SVD, "is for LoRA"),
    ("ia3", SVD, "is for LoRA"),
    ("vera", NEGATE, "is for LoRA"),
]


@pytest.mark.parametrize(("method", "kwargs", "message"), REFUSED)
def test_what_cannot_be_averaged(method: str, kwargs: dict[str, Any], message: str) -> None:
    model = trained("bert", method, 2)
    before = sorted(model.state_dict())
    with pytest.raises(MergeError, match=message):
        model.average_adapter("avg", **{"adapter_list": ["a", "b"], **kwargs})
    assert sorted(model.state_dict()) == before
    assert list(model.adapters_config) == ["a", "b"]


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
