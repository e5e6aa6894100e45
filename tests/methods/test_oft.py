"""OFT against W R^T x + b with R in full, against PEFT's numbers, fused, stacked and in mixed batches."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from adapters import AdapterConfig, Average, BatchSplit, Parallel, Stack
from adapters.errors import ConfigError
from adapters.methods.oft import OFT, OFTConfig, StackedOFT
from tests.methods.reference import adapted, close, dense, states, weights
from tests.methods.test_lora import called
from tests.tiny import build, infer, inputs, output

PLACES = [("bert", "encoder.layer.1.output.dense"), ("gpt2", "h.1.attn.c_attn"), ("llama", "layers.0.self_attn.v_proj")]


def config(**options: Any) -> OFTConfig:
    return OFTConfig(block_size=8, **options)


def modules(model: Any, name: str = "a") -> list[OFT]:
    return [m for m in model.modules() if isinstance(m, OFT) and m.name == name]


def rotation(q: Tensor, width: int, size: int = 8, terms: int | None = None) -> Tensor:
    """R in full [I, I], entry by entry."""
    blocks = []
    for block in range(width // size):
        skew, own = torch.zeros(size, size), iter(q[block % len(q)])
        for i in range(size):
            for j in range(i + 1, size):
                skew[i, j] = next(own)
                skew[j, i] = -skew[i, j]
        inverse = torch.linalg.inv(torch.eye(size) - skew)
        if terms is not None:
            inverse = sum((torch.linalg.matrix_power(skew, k) for k in range(1, terms + 1)), torch.eye(size))
        blocks.append((torch.eye(size) + skew) @ inverse)
    return torch.block_diag(*blocks)


@pytest.mark.parametrize("options", [{}, {"block_share": True}, {"neumann_terms": 3}], ids=str)
@pytest.mark.parametrize(("name", "place"), PLACES)
def test_formula(name: str, place: str, options: dict[str, Any]) -> None:
    model = adapted(name, config(**options))
    weight, bias = dense(model.get_submodule(place))
    x, q = states(width=weight.shape[1]), weights(model, f"{place}.loras")["Q"]
    if "neumann_terms" in options:
        with torch.no_grad():
            for module in modules(model):
                module.Q.mul_(0.1)
        q = q.clone()
    turn = rotation(q, weight.shape[1], terms=options.get("neumann_terms"))
    expected = x @ turn @ weight.T + bias
    close(called(model, place, x), expected)
    if not options.get("neumann_terms"):
        close(turn @ turn.T, torch.eye(len(turn)))
    model.merge_adapter("a")
    torch.testing.assert_close(called(model, place, x), expected, atol=1e-4, rtol=1e-4)
    model.reset_adapter()
    assert torch.equal(dense(model.get_submodule(place))[0], weight)


@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
@pytest.mark.parametrize("case", ["inverse", "series", "shared", "constrained"])
def test_numbers_are_those_of_peft(case: str, merge: bool) -> None:
    ours = config(
        places=["attn.q", "ffn.down"],
        neumann_terms=3 if case == "series" else None,
        block_share=case == "shared",
        eps=1.5 if case == "constrained" else None,
    )
    theirs = peft.OFTConfig(
        oft_block_size=8,
        use_cayley_neumann=case == "series",
        num_cayley_neumann_terms=5,
        block_share=case == "shared",
        coft=case == "constrained",
        eps=1.5,
        target_modules=r".*(query|\d\.output\.dense)",
    )
    model, given = adapted("bert", ours), inputs("bert")
    other: Any = peft.get_peft_model(build("bert", adapted=False), theirs).eval()
    with torch.no_grad():
        for module in modules(model):
            module.Q.mul_(0.3)
            layer = other.base_model.model.get_submodule(module.site.path)
            # PEFT's inverse has (I - Q)(I + Q)^-1, its series the transpose of that
            layer.oft_R["default"].weight.copy_(module.Q if case == "series" else -module.Q)
    if merge:
        model.merge_adapter("a")
        other = other.merge_and_unload()
    torch.testing.assert_close(infer(model, given), infer(other, given), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(infer(model, given), infer(build("bert"), given), atol=1e-2)


@pytest.mark.parametrize("share", [False, True])
def test_training_within_a_bound_is_that_of_peft(share: bool) -> None:
    model, given = build("bert"), inputs("bert")
    model.add_adapter("a", config=config(places=["attn.q"], eps=0.05, block_share=share))
    model.train_adapter("a")
    options = {"oft_block_size": 8, "block_share": share, "coft": True, "eps": 0.05, "use_cayley_neumann": False}
    other: Any = peft.get_peft_model(build("bert", adapted=False), peft.OFTConfig(target_modules=["query"], **options))
    for trained in (model, other):
        trained.train()
        optimizer = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            output(trained, given)[:, 0].square().sum().backward()
            optimizer.step()
    for module in modules(model):
        layer = other.base_model.model.get_submodule(module.site.path)
        close(module.Q, -layer.oft_R["default"].weight)
        assert (module.bounded(module.Q) != module.Q).any()
    close(infer(model.eval(), given), infer(other.eval(), given))


def test_a_stack_rotates_one_after_the_other_and_an_average_averages() -> None:
    model, place, x = adapted("bert", config(), config()), "encoder.layer.0.output.dense", states(width=40)
    weight, bias = dense(model.get_submodule(place))
    one, two = (rotation(weights(model, f"{place}.loras", adapter)["Q"], 40) for adapter in "ab")
    model.set_active_adapters(Stack("a", "b"))
    close(called(model, place, x), x @ one @ two @ weight.T + bias)
    model.set_active_adapters(Average("a", "b", weights=[1, 3]))
    close(called(model, place, x), x @ (one + 3 * two) @ weight.T / 4 + bias)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("setup", [Parallel("a", "b"), BatchSplit("a", "b", batch_sizes=[1, 3])], ids=str)
def test_rows_of_a_batch_are_one_operation(setup: Any, share: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = adapted("bert", config(block_share=share), config(block_share=share)), inputs("bert")
    of_a = infer(model, given)
    model.set_active_adapters("b")
    of_b = infer(model, given)
    model.set_active_adapters(setup)
    calls: list[StackedOFT] = []
    forward = StackedOFT.forward
    monkeypatch.setattr(StackedOFT, "forward", lambda self, x: (calls.append(self), forward(self, x))[1])
    found = infer(model, given)
    assert len(calls) == len(modules(model))
    close(found, torch.cat([of_a, of_b] if isinstance(setup, Parallel) else [of_a[:1], of_b[1:]]))
    seen: list[str] = []
    handle = modules(model, "b")[0].register_forward_hook(lambda *_: seen.append("b"))
    close(infer(model, given), found)
    handle.remove()
    assert seen == ["b"]


def test_rotations_are_kept_until_weights_change() -> None:
    model, given = adapted("bert", config()), inputs("bert")
    before = infer(model, given)
    with torch.no_grad():
        kept = modules(model)[0].rotation()
        assert infer(model, given).equal(before) and modules(model)[0].rotation() is kept
        modules(model)[0].Q.mul_(0.5)
    assert not torch.allclose(infer(model, given), before)


def test_dropout_leaves_blocks_as_they_are() -> None:
    model = adapted("bert", config(dropout=0.5))
    module, x = modules(model)[0], states()
    turned = module(x)
    module.train()
    torch.manual_seed(0)
    blocks = module(x).unflatten(-1, (4, 8))
    idle = [torch.equal(blocks[:, :, i], x.unflatten(-1, (4, 8))[:, :, i]) for i in range(4)]
    assert any(idle) and not all(idle)
    for i in range(4):
        torch.testing.assert_close(blocks[:, :, i], (x if idle[i] else turned).unflatten(-1, (4, 8))[:, :, i])


@pytest.mark.parametrize("base", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("own", [None, "float32"])
def test_dtypes(base: torch.dtype, own: str | None) -> None:
    model, given = build("bert").to(base), inputs("bert")
    plain = infer(model, given)
    model.add_adapter("a", config=config(dtype=own), set_active=True)
    assert modules(model)[0].Q.dtype is (base if own is None else torch.float32)
    torch.testing.assert_close(infer(model, given), plain, atol=1e-5 if own else 0, rtol=0)
    with torch.no_grad():
        for module in modules(model):
            module.Q.add_(0.1)
    assert infer(model, given).dtype is base and not torch.allclose(infer(model, given), plain, atol=1e-2)


def test_it_starts_as_the_base_model_and_trains() -> None:
    model, given = build("bert"), inputs("bert")
    expected = infer(model, given)
    model.add_adapter("a", config=config())
    model.train_adapter("a")
    assert torch.equal(infer(model, given), expected)
    output(model, given).square().mean().backward()
    assert all(module.Q.grad is not None and module.Q.grad.any() for module in modules(model))


def test_a_part_of_a_fused_projection_is_refused() -> None:
    model = build("gpt2")
    with pytest.raises(ConfigError, match=r"'a': places names attn.q of h.0.attn.c_attn, which computes attn.q, "):
        model.add_adapter("a", config=config(places=["attn.q"]))
    assert not model.has_adapters()
    model.add_adapter("a", config=config(places=["attn.[qkv]"]))


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"block_size=7 does not divide the width 32 of the input of encoder"):
        build("bert").add_adapter("a", config="oft[block_size=7]")
    for bad in ("block_size=1", "neumann_terms=0", "dropout=1.5", "block_share=1"):
        with pytest.raises(ConfigError, match=bad.partition("=")[0]):
            AdapterConfig.load(f"oft[{bad}]")
