"""MTL-LoRA against W x + b + (alpha / r) sum_k w_k B_k T A x."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from adapters.methods.mtl_lora import MTLLoRAConfig
from tests.methods.reference import adapted, close, dense, gate_of, states, weights
from tests.methods.test_lora import called


@pytest.mark.parametrize("matrix", ["singular_values", "linear"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("gated", [False, True])
def test_one_projection(matrix: str, count: int, gated: bool) -> None:
    config = MTLLoRAConfig(
        r=3, alpha=5, n_up_projection=count, task_specific_matrix_type=matrix, weights_sharpness=0.5, use_gating=gated
    )
    model, place = adapted("bert", config), "encoder.layer.0.attention.self.query"
    (weight, bias), x = dense(model.get_submodule(place)), states()
    w = weights(model, f"{place}.loras")
    name = next(key for key in w if key.startswith("task_specific"))
    inner = x @ w["lora_A"].T
    inner = inner * w[name] if w[name].dim() == 1 else inner @ w[name]
    mixture = F.softmax(w["weights"] / 0.5, 0)
    update = sum(mixture[k] * (inner @ w["lora_B"][k].T) for k in range(count))
    update = update * gate_of(w, x)[:, :, None] if gated else update * 5 / 3
    close(called(model, place, x), x @ weight.T + bias + update)


def test_starts_as_the_identity() -> None:
    model, place = adapted("bert", MTLLoRAConfig(r=3)), "encoder.layer.0.attention.self.query"
    weight, bias = dense(model.get_submodule(place))
    model.add_adapter("new", config="mtl_lora", set_active=True)
    close(called(model, place, states()), states() @ weight.T + bias)
    assert torch.equal(weights(model, f"{place}.loras", "new")["weights"], torch.ones(1))
