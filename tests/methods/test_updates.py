"""LoHa, LoKr, RandLoRA, VB-LoRA, AdaLoRA: the formulas of their papers, and the numbers of PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import adapters
from adapters.errors import AdapterNameError, ConfigError
from adapters.methods import METHODS
from adapters.methods.adalora import AdaLoRA, RankAllocator
from adapters.methods.config import members_of
from adapters.methods.lokr import divided
from adapters.methods.presets import ADAPTER_CONFIG_MAP
from adapters.methods.weight_update import WeightUpdate
from tests.methods.reference import adapted, close, dense, states
from tests.tiny import build, infer, inputs, output, perturb

TARGETS = ["query", "value"]
Copy = Callable[[Any, WeightUpdate], None]


def set_(target: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        target.copy_(value)


def copy_loha(layer: Any, module: Any) -> None:
    (update,) = module.updates
    for i in (1, 2):
        set_(getattr(layer, f"hada_w{i}_a")["default"], update.get_parameter(f"B_{i}"))
        set_(getattr(layer, f"hada_w{i}_b")["default"], update.get_parameter(f"A_{i}"))


def copy_lokr(layer: Any, module: Any) -> None:
    (update,) = module.updates
    for name, value in update.named_parameters():
        key = {"C": "lokr_w1", "D": "lokr_w2", "C_1": "lokr_w1_a", "C_2": "lokr_w1_b", "D_1": "lokr_w2_a"}
        set_(getattr(layer, {**key, "D_2": "lokr_w2_b"}[name])["default"], value)


def copy_randlora(layer: Any, module: Any) -> None:
    (update,) = module.updates
    set_(layer.randlora_lambda["default"], update.L.t())
    set_(layer.randlora_gamma["default"], update.G)
    set_(layer.randlora_A["default"], module.common.A[:, None])
    terms, rows, rank = module.common.B.shape
    # PEFT counts the columns of all B_j term by term, but the rows of all A_j rank by rank, and multiplies these
    set_(layer.randlora_B["default"], module.common.B.permute(1, 2, 0).reshape(rows, terms, rank))


def copy_vblora(layer: Any, module: Any) -> None:
    set_(layer.vblora_logits_A["default"], module.logits_A)
    set_(layer.vblora_logits_B["default"], module.logits_B)
    set_(layer.vblora_vector_bank["default"], module.common.vectors)


def copy_adalora(layer: Any, module: Any) -> None:
    for name in ("lora_A", "lora_E", "lora_B"):
        set_(getattr(layer, name)["default"], getattr(module, name))


PEFT: dict[str, tuple[Any, Any, Copy]] = {
    "loha": (
        adapters.AdapterConfig.load("loha[r=4,alpha=6]"),
        peft.LoHaConfig(r=4, alpha=6, target_modules=TARGETS),
        copy_loha,
    ),
    "lokr": (
        adapters.AdapterConfig.load("lokr[r=2,alpha=3]"),
        peft.LoKrConfig(r=2, alpha=3, target_modules=TARGETS),
        copy_lokr,
    ),
    "lokr, both": (
        adapters.AdapterConfig.load("lokr[r=1,alpha=3,decompose_both=True,factor=4]"),
        peft.LoKrConfig(r=1, alpha=3, decompose_both=True, decompose_factor=4, target_modules=TARGETS),
        copy_lokr,
    ),
    "randlora": (
        adapters.AdapterConfig.load("randlora[r=5,alpha=7]"),
        peft.RandLoraConfig(r=5, randlora_alpha=7, target_modules=TARGETS),
        copy_randlora,
    ),
    "vblora": (
        adapters.AdapterConfig.load("vblora[r=3,num_vectors=7,vector_length=8,topk=2]"),
        peft.VBLoRAConfig(r=3, num_vectors=7, vector_length=8, topk=2, target_modules=TARGETS),
        copy_vblora,
    ),
    "adalora": (
        adapters.AdapterConfig.load("adalora[r=4,target_r=2,alpha=6]"),
        peft.AdaLoraConfig(init_r=4, target_r=2, lora_alpha=6, total_step=10, target_modules=TARGETS),
        copy_adalora,
    ),
}


def modules(model: Any) -> list[WeightUpdate]:
    return [m for m in model.modules() if isinstance(m, WeightUpdate) and m.name == "a"]


@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
@pytest.mark.parametrize("case", PEFT)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_numbers_are_those_of_peft(case: str, merge: bool) -> None:
    config, theirs, copy = PEFT[case]
    model, given = adapted("bert", config), inputs("bert")
    other: Any = peft.get_peft_model(build("bert", adapted=False), theirs).eval()
    for module in modules(model):
        copy(other.base_model.model.get_submodule(module.site.path), module)
    if merge:
        model.merge_adapter("a")
        other = other.merge_and_unload()
    torch.testing.assert_close(infer(model, given), infer(other, given), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(infer(model, given), infer(build("bert"), given), atol=1e-3)


def weight_of(case: str, module: Any) -> Tensor:
    """D by the paper's formula, entry by entry where that is short."""
    config = module.config
    if case == "loha":
        (u,) = module.updates
        return torch.einsum("or,ri,os,si->oi", u.B_1, u.A_1, u.B_2, u.A_2)
    if case.startswith("lokr"):
        (u,) = module.updates
        p = dict(u.named_parameters())
        c = p["C"] if "C" in p else p["C_1"] @ p["C_2"]
        d = p["D"] if "D" in p else p["D_1"] @ p["D_2"]
        return torch.cat([torch.cat([c[i, j] * d for j in range(c.shape[1])], 1) for i in range(c.shape[0])])
    if case == "randlora":
        (u,) = module.updates
        a, b = module.common.A, module.common.B
        return sum(b[j] @ u.L[j].diag() @ a @ u.G[j].diag() for j in range(len(u.L)))  # type: ignore[return-value]
    if case == "vblora":
        bank = module.common.vectors

        def mix(logits: Tensor) -> Tensor:
            values, best = logits.sort(descending=True)
            return sum(  # type: ignore[return-value]
                w * bank[i] for w, i in zip(values[: config.topk].softmax(0), best[: config.topk])
            )

        a = torch.stack([torch.cat([mix(piece) for piece in row]) for row in module.logits_A])
        b = torch.cat([torch.stack([mix(piece) for piece in rows], 1) for rows in module.logits_B])
        return b @ a
    return module.lora_B @ module.lora_E.view(-1).diag() @ module.lora_A  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", PEFT)
def test_formula_of_the_paper(case: str) -> None:
    model = adapted("bert", PEFT[case][0])
    module = modules(model)[0]
    config: Any = module.config
    weight, bias = dense(module.site.module)
    scaling = 1.0 if case == "vblora" else config.alpha / config.r
    x = states()
    with torch.no_grad():
        expected = x @ (weight + scaling * weight_of(case, module)).t() + bias
        close(module(x, x @ weight.t() + bias), expected)


@pytest.mark.parametrize("case", PEFT)
def test_it_starts_as_the_base_model(case: str) -> None:
    model, given = build("bert"), inputs("bert")
    expected = infer(model, given)
    model.add_adapter("a", config=PEFT[case][0])
    model.set_active_adapters("a")
    tolerance = 1e-2 if case == "vblora" else 1e-6  # a bank of vectors has no zeros
    torch.testing.assert_close(infer(model, given), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("number", "factor", "parts"), [
    (256, None, (16, 16)), (128, None, (8, 16)), (127, None, (1, 127)), (128, 4, (4, 32)), (36, 8, (6, 6)),
])  # fmt: skip
def test_divisors(number: int, factor: int | None, parts: tuple[int, int]) -> None:
    assert divided(number, factor) == parts


def test_one_bank_serves_all_sites_and_trains() -> None:
    model = adapted("bert", PEFT["vblora"][0])
    assert len({id(module.common) for module in modules(model)}) == 1
    model.train_adapter("a")
    output(model, inputs("bert")).square().sum().backward()
    bank: Any = modules(model)[0].common
    assert bank.vectors.grad is not None and bank.vectors.grad.abs().sum() > 0


def test_random_bases_do_not_train() -> None:
    model = adapted("bert", PEFT["randlora"][0])
    model.train_adapter("a")
    common: Any = modules(model)[0].common
    assert not common.A.requires_grad and not common.B.requires_grad
    assert all(update.L.requires_grad for module in modules(model) for update in module.updates)  # type: ignore[attr-defined]


def test_vectors_must_fit() -> None:
    with pytest.raises(ConfigError, match="vector_length=7 does not divide the width 32"):
        build("bert").add_adapter("a", config="vblora[vector_length=7]")
    with pytest.raises(ConfigError, match="topk"):
        adapters.AdapterConfig.load("vblora[topk=5,num_vectors=4]")


def trained(steps: int) -> tuple[Any, RankAllocator]:
    model = adapted("bert", adapters.AdapterConfig.load("adalora[r=4,target_r=1,initial_steps=2,final_steps=2]"))
    model.train_adapter("a")
    allocator = RankAllocator(model, "a", steps)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for step in range(steps):
        (output(model, inputs("bert")).square().mean() + allocator.loss()).backward()
        optimizer.step()
        allocator.step()
        optimizer.zero_grad()
        ranks = sum(int((m.lora_E != 0).sum()) for m in allocator.modules)
        assert ranks == (allocator.budget(step + 1) if step >= 2 else allocator.ranks), step
    return model, allocator


def test_ranks_fall_to_the_budget() -> None:
    _, allocator = trained(10)
    left = [int((m.lora_E != 0).sum()) for m in allocator.modules]
    assert sum(left) == allocator.target == len(allocator.modules)


def test_the_most_important_ranks_stay() -> None:
    model = adapted("bert", adapters.AdapterConfig.load("adalora[r=2,target_r=1]"))
    model.train_adapter("a")
    allocator = RankAllocator(model, "a", 1)
    kept = allocator.modules[0]
    for module in allocator.modules:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)
    for parameter in kept.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    allocator.config = allocator.config.replace(final_steps=0)
    for _ in range(2):
        for module in allocator.modules:
            for parameter in module.parameters():
                allocator._note(parameter)
    allocator._allocate(2)
    assert bool((kept.lora_E != 0).all())
    assert all(not m.lora_E.any() for m in allocator.modules[1:])


def test_orthogonality_loss() -> None:
    model = adapted("bert", adapters.AdapterConfig.load("adalora[r=4,orthogonality=0.3]"))
    allocator = RankAllocator(model, "a", 5)
    grams = [m for a in allocator.modules for m in (a.lora_A @ a.lora_A.t(), a.lora_B.t() @ a.lora_B)]
    close(allocator.loss(), 0.3 * sum((g - torch.eye(4)).norm() for g in grams) / len(grams))  # type: ignore[arg-type]


def test_what_the_allocator_refuses() -> None:
    model = adapted("bert", adapters.AdapterConfig.load("adalora[initial_steps=5,final_steps=5]"))
    with pytest.raises(AdapterNameError, match="no AdaLoRA adapter 'b'"):
        RankAllocator(model, "b", 20)
    with pytest.raises(ConfigError, match="Train longer"):
        RankAllocator(model, "a", 10)


@pytest.mark.parametrize("case", PEFT)
def test_fused_projections(case: str) -> None:
    """At GPT-2's c_attn queries and values have updates of their own, and keys none."""
    model = adapted("gpt2", PEFT[case][0])
    module = modules(model)[0]
    x, width = states(), module.in_features
    with torch.no_grad():
        y = module(x, torch.zeros(*x.shape[:2], 3 * width))
        close(y, module.scaling * (x @ module.delta_weight().t()))
    assert not y[..., width : 2 * width].any()
    assert y[..., :width].any() and y[..., 2 * width :].any()


def test_low_rank_bottleneck() -> None:
    model = adapted("bert", adapters.AdapterConfig.load("low_rank_bn[reduction_factor=4,rank=2]"))
    (module, *_) = [m for m in model.modules() if type(m).__name__ == "LowRankBottleneck"]
    down, up = module.adapter_down[0], module.adapter_up
    x = states()
    hidden = nn.functional.gelu(x @ (down.U @ down.V).t() + down.bias, approximate="tanh")
    with torch.no_grad():
        close(module(x), hidden @ (up.U @ up.V).t() + up.bias)
    assert down.U.shape == (8, 2) and down.V.shape == (2, 32)


def test_one_method_makes_the_projections_of_a_bottleneck() -> None:
    with pytest.raises(ConfigError, match="phm_layer is True"):
        adapters.AdapterConfig.load("low_rank_bn[phm_layer=True]")
    for config in ADAPTER_CONFIG_MAP.values():
        for member in members_of(config):
            assert len([method for method in METHODS if method.handles(member)]) == 1 + bool(member.get("inv_adapter"))


def test_allocated_ranks_act_at_once() -> None:
    model, given = adapted("bert", adapters.AdapterConfig.load("adalora[r=4]")), inputs("bert")
    before = [infer(model, given) for _ in range(2)][-1]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, AdaLoRA):
                module.lora_E.zero_()
    assert not torch.allclose(infer(model, given), before)
    torch.testing.assert_close(infer(model, given), infer(build("bert"), given))
    perturb(model, "a")
