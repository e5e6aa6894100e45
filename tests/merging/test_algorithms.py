"""Does each algorithm compute the formula of its paper, on whatever it acts, and is what it cannot do refused?"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adapters
from adapters import IA3Config, LoRAConfig
from adapters.errors import HeadError, MergeError
from adapters.merging import ALGORITHMS
from adapters.methods.base import fixed_parameters
from tests.contract.cases import CONFIGS, ONE_OF_EACH, pairs
from tests.tiny import build, infer, inputs, perturb

SEED, DENSITY, WEIGHTS = 3, 0.5, (0.7, -0.4, 0.7)


def cut(matrix: Tensor, rank: int) -> Tensor:
    u, s, v = torch.svd(matrix)
    return (u[:, :rank] * s[:rank]) @ v[:, :rank].T


def trim(tensor: Tensor) -> Tensor:
    return tensor * (tensor.abs() > tensor.abs().flatten().median())


def elect(tensors: list[Tensor]) -> Tensor:
    out = torch.zeros(tensors[0].shape)
    for i in range(out.numel()):
        entries = [float(tensor.reshape(-1)[i]) for tensor in tensors]
        sign = 1 if sum(entries) >= 0 else -1
        agreeing = [entry for entry in entries if entry * sign > 0]
        out.view(-1)[i] = sum(agreeing) / len(agreeing) if agreeing else 0
    return out


def drop(tensors: list[Tensor], kept: Callable[[Tensor], Tensor]) -> list[Tensor]:
    random = torch.Generator().manual_seed(SEED)
    masks = [torch.bernoulli(kept(tensor), generator=random) for tensor in tensors]
    return [mask * tensor / kept(tensor) for mask, tensor in zip(masks, tensors)]


def constant(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, DENSITY)


def by_rank(tensor: Tensor) -> Tensor:
    keep = torch.empty_like(tensor)
    for row, out in zip(tensor.reshape(-1, tensor.shape[-1]), keep.view(-1, tensor.shape[-1])):
        for k, i in enumerate(sorted(range(len(row)), key=lambda i: -abs(float(row[i])))):
            out[i] = 1 - ((1 - DENSITY) - 0.3 / 2 + 0.3 * k / len(row))
    return keep


def middle(tensor: Tensor) -> Tensor:
    low, high = torch.quantile(tensor.abs().flatten(), torch.tensor([0.25, 0.75]), interpolation="nearest")
    order = sorted(range(tensor.numel()), key=lambda i: -abs(float(tensor.view(-1)[i])))
    assert low < high
    mask = torch.zeros_like(tensor)
    mask.view(-1)[order[round(0.25 * len(order)) : round(0.75 * len(order))]] = 1
    return mask * tensor


def arc(tensors: list[Tensor]) -> Tensor:
    one, other = tensors
    angle = torch.arccos((one * other).sum() / one.norm() / other.norm())
    return (torch.sin(0.3 * angle) * one + torch.sin(0.7 * angle) * other) / torch.sin(angle)


def knots(updates: list[Tensor]) -> Tensor:
    u, s, vt = torch.linalg.svd(torch.cat(updates, 1), full_matrices=False)
    rank = int((s > 1e-5 * s[0]).sum())
    own = (s[:rank, None] * vt[:rank]).chunk(len(updates), 1)
    return u[:, :rank] @ elect([w * trim(part) for w, part in zip(WEIGHTS, own)])


def weigh(tensors: list[Tensor]) -> list[Tensor]:
    return [weight * tensor for weight, tensor in zip(WEIGHTS, tensors)]


def total(tensors: list[Tensor]) -> Tensor:
    return torch.stack(weigh(tensors)).sum(0)


# (what it makes of updates, or of tensors that do nothing at 0; options)
REFERENCES: dict[str, tuple[Callable[[list[Tensor]], Tensor], dict[str, Any]]] = {
    "task_arithmetic": (total, {}),
    "cat": (total, {}),
    "lora_delta_w_svd": (lambda t: cut(total(t), 3), {"svd_rank": 3}),
    "magnitude_prune": (lambda t: total([*map(trim, t)]), {"density": DENSITY}),
    "ties": (lambda t: elect(weigh([*map(trim, t)])), {"density": DENSITY}),
    "dare_linear": (lambda t: total(drop(t, constant)), {"density": DENSITY, "seed": SEED}),
    "dare_ties": (lambda t: elect(weigh(drop(t, constant))), {"density": DENSITY, "seed": SEED}),
    "della": (lambda t: elect(weigh(drop(t, by_rank))), {"density": DENSITY, "seed": SEED, "epsilon": 0.3}),
    "breadcrumbs": (lambda t: total([*map(middle, t)]), {"density": 0.5, "gamma": 0.25}),
    "slerp": (lambda t: arc(t[:2]), {}),
    "knots": (knots, {"density": DENSITY}),
}
KNOWN = {algorithm.strategy: algorithm for algorithm in ALGORITHMS}
ELSEWHERE = {"linear", "lora_linear_only_negate_b", "lora_delta_w_svd_unscaled"}
"""In test_average.py."""
EXACT = ("task_arithmetic", "cat", "knots")
FULL = 32
"""A rank that loses nothing."""


def test_every_algorithm_has_a_reference() -> None:
    assert set(KNOWN) == set(REFERENCES) | ELSEWHERE


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_algorithm_tells_what_it_is(algorithm: Any) -> None:
    doc = inspect.getdoc(algorithm) or ""
    assert re.search(r"^ *[\w\[].* = \S", doc, re.MULTILINE), "no formula"
    assert not algorithm.paper or algorithm.paper in doc


def at_one_place(config: Any, **changes: Any) -> Any:
    model = build("bert", num_hidden_layers=1)
    for i, name in enumerate("abc"):
        own = {key: values[i] for key, values in changes.items()}
        model.add_adapter(name, config=config.replace(**own))
        perturb(model, name, seed=i)
    return model


def arguments(strategy: str) -> dict[str, Any]:
    if strategy == "slerp":
        return {"adapter_list": ["a", "b"], "weights": [0.3, 0.7]}
    return {"adapter_list": list("abc"), "weights": list(WEIGHTS), "normalize_weights": False}


def module_of(model: Any, name: str) -> Any:
    (part,) = model._engine.parts[name]
    return part.module


def effect(module: Any) -> Tensor:
    return (module.config.alpha / module.config.r * module.lora_B @ module.lora_A).detach()


@pytest.fixture(scope="module")
def loras() -> Any:
    """Three LoRAs of other ranks and alphas, at one place."""
    return at_one_place(LoRAConfig(places=["attn.q"]), r=(2, 3, 1), alpha=(4, 3, -2))


@pytest.mark.parametrize("strategy", REFERENCES)
def test_on_the_products_of_lora(strategy: str, loras: Any) -> None:
    combine, options = REFERENCES[strategy]
    updates = [effect(module_of(loras, name)) for name in "abc"]
    want = combine(updates)
    takes_rank = "svd_rank" in KNOWN[strategy].options()
    whole = {"svd_rank": FULL} if takes_rank and strategy not in (*EXACT, "lora_delta_w_svd") else {}
    loras.average_adapter("x", **arguments(strategy), combine_strategy=strategy, **options, **whole, overwrite_ok=True)
    made = module_of(loras, "x")
    torch.testing.assert_close(effect(made), want, atol=2e-5, rtol=1e-4)
    assert (made.config.r, made.config.alpha) == (
        {"lora_delta_w_svd": 3}.get(strategy, 6 if strategy in EXACT else 32),
    ) * 2
    if takes_rank:
        loras.average_adapter(
            "x", **arguments(strategy), combine_strategy=strategy, **{**options, "svd_rank": 2}, overwrite_ok=True
        )
        torch.testing.assert_close(effect(module_of(loras, "x")), cut(want, 2), atol=1e-4, rtol=1e-3)
    if whole:
        loras.average_adapter("x", **arguments(strategy), combine_strategy=strategy, **options, overwrite_ok=True)
        assert module_of(loras, "x").config.r == 3, "the highest of them"


@pytest.mark.parametrize("strategy", [name for name in REFERENCES if not KNOWN[name].lora_only])
def test_on_what_does_nothing_at_one(strategy: str) -> None:
    """(IA)^3 multiplies by l / 2 here, so that 2 does nothing."""
    combine, options = REFERENCES[strategy]
    model = at_one_place(IA3Config(places=["attn.q"], alpha=0.5))
    vectors = [module_of(model, name).lora_B.detach() - 2 for name in "abc"]
    model.average_adapter("x", **arguments(strategy), combine_strategy=strategy, **options)
    torch.testing.assert_close(module_of(model, "x").lora_B.detach() - 2, combine(vectors), atol=1e-5, rtol=1e-4)


def test_frequency_counts_votes() -> None:
    model = at_one_place(IA3Config(places=["attn.q"]))
    big, small = torch.full((32, 1), 5.0), torch.full((32, 1), -1.0)
    for name, value in zip("abc", (big, small, small * 2)):
        module_of(model, name).lora_B.data = 1 + value
    for majority, want in (("total", 5.0), ("frequency", -1.5)):
        model.average_adapter(
            "x", list("abc"), combine_strategy="ties", density=1.0, majority=majority, overwrite_ok=True
        )
        torch.testing.assert_close(module_of(model, "x").lora_B.detach(), torch.full((32, 1), 1 + want))


def test_fused_projections_and_biases() -> None:
    """At GPT-2's c_attn every adapted part has its own products; what LoRA adds to the output is a tensor."""
    model = build("gpt2", n_layer=1)
    for i, (name, rank) in enumerate((("a", 2), ("b", 3))):
        model.add_adapter(name, config=LoRAConfig(r=rank, alpha=4, use_bias=True, attn_matrices=["q", "v"]))
        perturb(model, name, seed=i)
    plain, given = infer(model, inputs("gpt2")), inputs("gpt2")
    model.average_adapter("x", ["a", "b"], [1, -2], "task_arithmetic", normalize_weights=False)
    weights = {}
    site = model._engine.parts["a"][0].hooked.site
    before, bias = site.weight.clone(), site.bias.clone()
    for name in "abx":
        model.merge_adapter(name)
        weights[name] = site.weight - before, site.bias - bias
        model.reset_adapter()
    for one, other, made in zip(*(weights[name] for name in "abx")):
        torch.testing.assert_close(made, one - 2 * other, atol=1e-5, rtol=1e-4)
    model.set_active_adapters("x")
    assert not torch.allclose(infer(model, given), plain, atol=1e-2)


def trained(method: str, name: str = "bert") -> Any:
    """Two adapters that differ in what trains, and share what does not."""
    model = build(name, num_hidden_layers=1)
    for i, adapter in enumerate("ab"):
        torch.manual_seed(0)
        model.add_adapter(adapter, config=CONFIGS[method])
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for part in model._engine.parts[adapter]:
                fixed = {id(parameter) for parameter in fixed_parameters(part.module)}
                for parameter in part.module.parameters():
                    if id(parameter) not in fixed:
                        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


NO_RESTING_POINT = ("prefix_tuning", "prompt_tuning", "unipelt")
"""Prefixes and prompts are attended to, whatever they are."""


@pytest.mark.parametrize(("method", "name"), pairs(methods=ONE_OF_EACH, names=("bert",)))
def test_of_one_adapter_and_of_none(method: str, name: str) -> None:
    """All kept of one adapter is this adapter; nothing of it is the base model."""
    model, given = trained(method), inputs("bert")
    plain = infer(model, given)
    model.set_active_adapters("a")
    want = infer(model, given)
    assert want.shape != plain.shape or not torch.allclose(want, plain, atol=1e-3)
    for strategy, algorithm in KNOWN.items():
        takes = algorithm.options()
        if algorithm.lora_only or strategy == "slerp":
            continue
        options = {"density": 1.0} if "density" in takes else {}
        options |= {"gamma": 0.0} if "gamma" in takes else {}
        options |= {"epsilon": 0.0} if "epsilon" in takes else {}
        model.average_adapter("x", ["a"], combine_strategy=strategy, overwrite_ok=True, set_active=True, **options)
        torch.testing.assert_close(infer(model, given), want, atol=2e-4, rtol=1e-3, msg=strategy)
    model.average_adapter(
        "x", ["a", "b"], [0, 0], "task_arithmetic", normalize_weights=False, overwrite_ok=True, set_active=True
    )
    if method not in NO_RESTING_POINT:
        torch.testing.assert_close(infer(model, given), plain, atol=1e-5, rtol=1e-4)
    model.average_adapter("x", ["a", "b"], [0.5, 0.5], "slerp", overwrite_ok=True)


@pytest.mark.parametrize("method", ["vera", "randlora"])
def test_random_bases_must_be_the_same(method: str) -> None:
    model = build("bert", num_hidden_layers=1)
    for i, name in enumerate("ab"):
        torch.manual_seed(i)
        model.add_adapter(name, config=CONFIGS[method])
    with pytest.raises(MergeError, match=r"never trains.*same seed"):
        model.average_adapter("x", ["a", "b"], combine_strategy="ties")
    assert "x" not in model.adapters_config


def test_unions_are_combined_member_by_member(tmp_path: Path) -> None:
    model, given = build("bert", num_hidden_layers=1), inputs("bert")
    for i, (name, rank) in enumerate((("a", 2), ("b", 3))):
        union = adapters.ConfigUnion(LoRAConfig(r=rank, alpha=rank), CONFIGS["ia3"].replace(attn_matrices=["k"]))
        model.add_adapter(name, config=union)
        perturb(model, name, seed=i)
    model.average_adapter("x", ["a", "b"], [1, 0], "task_arithmetic", set_active=True)
    made = infer(model, given)
    assert [member["r"] for member in model.adapters_config.get("x").configs] == [5, 1]
    model.save_adapter(tmp_path, "x")
    fresh = build("bert", num_hidden_layers=1)
    fresh.load_adapter(tmp_path, set_active=True)
    assert torch.equal(infer(fresh, given), made)
    model.set_active_adapters("a")
    torch.testing.assert_close(infer(model, given), made, atol=1e-5, rtol=1e-4)


def test_the_seed_decides() -> None:
    model = trained("seq_bn")
    made = {}
    for name, seed in (("x", 1), ("y", 1), ("z", 2)):
        state = torch.random.get_rng_state()
        model.average_adapter(name, ["a", "b"], combine_strategy="della", seed=seed)
        assert torch.equal(torch.random.get_rng_state(), state)
        made[name] = torch.cat([p.flatten() for part in model._engine.parts[name] for p in part.module.parameters()])
    assert torch.equal(made["x"], made["y"]) and not torch.equal(made["x"], made["z"])


def test_half_precision_is_combined_in_single() -> None:
    model = at_one_place(LoRAConfig(r=2, places=["attn.q"])).to(torch.bfloat16)
    model.average_adapter("x", list("abc"), combine_strategy="ties", density=0.5)
    model.average_adapter("y", list("abc"), combine_strategy="knots", density=0.5)
    assert module_of(model, "x").lora_A.dtype is torch.bfloat16 and module_of(model, "y").lora_B.isfinite().all()


def test_layers_have_weights_of_their_own() -> None:
    model = build("bert")
    for i, name in enumerate("ab"):
        model.add_adapter(name, config="seq_bn_inv[reduction_factor=4]")
        perturb(model, name, seed=i)

    def share(name: str) -> dict[int, float]:
        found = {}
        for part, a, b in zip(*(model._engine.parts[adapter] for adapter in (name, "a", "b"))):
            x, one, other = (torch.cat([t.flatten() for t in p.module.state_dict().values()]) for p in (part, a, b))
            found[part.layer] = float((x - other) @ (one - other) / (one - other).square().sum())
        return found

    for weights, want in (
        ([[1.0, 0.25], [0.0, 0.75]], {0: 1.0, 1: 0.25, -1: 0.625}),
        ([{0: 1.0, 1: 0.5, -1: 0.1}, lambda layer: 1.0 - layer / 4], {0: 0.5, 1: 0.5 / 1.25, -1: 0.1 / 1.35}),
        ([{0: 3.0, 1: 1.0}, 1.0], {0: 0.75, 1: 0.5, -1: 2 / 3}),
    ):
        used = model.average_adapter("x", ["a", "b"], weights, overwrite_ok=True)
        assert share("x") == pytest.approx(want, abs=1e-4)
        assert used["a"] == pytest.approx([want[layer] for layer in sorted(want)])
    for weights, message in (
        ([{0: 1.0}, 1.0], "none for layer 1"),
        ([{0: 1.0, 7: 1.0}, 1.0], "layer 7"),
        ([[1.0], 1.0], "1 weights of one adapter for 2 layers"),
        ([lambda layer: "much", 1.0], "'much' is no finite number"),
        ([[1.0, 0.0], [-1.0, 1.0]], "sum to zero in layer 0"),
        ([{}, 1.0], "empty"),
    ):
        before = sorted(model.state_dict())
        with pytest.raises(MergeError, match=message):
            model.average_adapter("y", ["a", "b"], weights)
        assert sorted(model.state_dict()) == before


def test_weights_are_searched_by_examples() -> None:
    """The best weights of a quadratic problem are known: those of the adapter whose outputs are the target."""
    model, given = build("bert", num_hidden_layers=1), inputs("bert")
    for i, name in enumerate("abc"):
        model.add_adapter(name, config=LoRAConfig(r=2, alpha=2, places=["attn.v"]))
        perturb(model, name, seed=i)
    truth = {"a": 0.9, "b": -0.6, "c": 0.2}
    model.average_adapter("truth", truth, normalize_weights=False, combine_strategy="cat", set_active=True)
    target = infer(model, given)
    model.set_active_adapters("a")
    model.train()
    calls = []

    def loss(found: Any) -> Tensor:
        calls.append((found.training, torch.is_grad_enabled(), len(found.adapters_config)))
        return (found(**given).last_hidden_state - target).square().mean()

    search = adapters.LoraHub(loss, evaluations=150, penalty=0.0, seed=0)
    used = model.average_adapter("x", list("abc"), search, "cat")
    assert {name: own[0] for name, own in used.items()} == pytest.approx(truth, abs=0.05)
    assert set(calls) == {(False, False, 5)} and len(calls) <= 150 and model.training
    assert list(model.adapters_config) == ["a", "b", "c", "truth", "x"] and repr(model.active_adapters) == "Stack[a]"
    again = model.average_adapter("x", list("abc"), search, "cat", overwrite_ok=True)
    assert again == used
    for broken, message in (
        (lambda model: "low", "gave 'low'"),
        (lambda model: float("nan"), "infinite or NaN for all"),
        (lambda model: model.no_such_attribute, "no_such_attribute"),
    ):
        with pytest.raises((MergeError, AttributeError), match=message):
            model.average_adapter("y", list("abc"), adapters.LoraHub(broken, evaluations=10))
        assert list(model.adapters_config) == ["a", "b", "c", "truth", "x"] and model.training
    with pytest.raises(MergeError, match="evaluations is 0"):
        adapters.LoraHub(loss, evaluations=0)


def test_heads_are_combined_too() -> None:
    model = adapters.AutoAdapterModel.from_config(build("bert", num_hidden_layers=1).config)
    for name in "ab":
        model.add_classification_head(name, num_labels=3)
    key = "4.weight"
    a, b = (model.heads[name].state_dict()[key] for name in "ab")
    model.average_head("x", ["a", "b"], [1, -1], normalize_weights=False, combine_strategy="task_arithmetic")
    torch.testing.assert_close(model.heads["x"].state_dict()[key], a - b)
    model.average_head("y", ["a", "b"], combine_strategy="ties", density=DENSITY)
    torch.testing.assert_close(model.heads["y"].state_dict()[key], elect([trim(a), trim(b)]))
    for options, message in (
        ({"combine_strategy": "knots"}, "is for LoRA"),
        ({"combine_strategy": "ties", "svd_rank": 2}, "svd_rank is for LoRA"),
        ({"combine_strategy": "geometric"}, "geometric"),
        ({"combine_strategy": "ties", "seed": 1}, "does not take seed=1. It takes: svd_rank, density, majority"),
        ({"combine_strategy": "slerp", "weights": [1, 1], "normalize_weights": False}, "sum to 1"),
    ):
        with pytest.raises(HeadError, match=message):
            model.average_head("z", ["a", "b"], **options)
    assert "z" not in model.heads


WRONG = {"density": 1.5, "majority": "few", "seed": "s", "epsilon": 2, "gamma": 2, "svd_rank": 0}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_options_that_an_algorithm_does_not_take(algorithm: Any) -> None:
    model = trained("lora")
    needed = {"svd_rank": 2} if "svd" in algorithm.strategy else {}
    with pytest.raises(MergeError, match=r"does not take temperature=1\. It takes"):
        model.average_adapter("x", ["a", "b"], combine_strategy=algorithm.strategy, temperature=1, **needed)
    for name, wrong in WRONG.items():
        if name in algorithm.options():
            with pytest.raises(MergeError, match=f"{name} is {wrong!r}. Allowed"):
                model.average_adapter("x", ["a", "b"], combine_strategy=algorithm.strategy, **{**needed, name: wrong})
    assert list(model.adapters_config) == ["a", "b"]


def test_what_slerp_cannot_do() -> None:
    model = at_one_place(LoRAConfig(r=2, places=["attn.q"]))
    with pytest.raises(MergeError, match="there are 3"):
        model.average_adapter("x", list("abc"), combine_strategy="slerp")
    with pytest.raises(MergeError, match="sum to 1"):
        model.average_adapter("x", ["a", "b"], [1, 1], "slerp", normalize_weights=False)


@pytest.mark.parametrize("strategy", ["ties", "cat", "knots"])
def test_experts_are_combined_one_by_one(strategy: str) -> None:
    import transformers

    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        num_local_experts=3, vocab_size=20, max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(0)
    model = adapters.init(transformers.MixtralModel(config).eval())
    for i, (name, rank) in enumerate((("a", 1), ("b", 2))):
        model.add_adapter(name, config=LoRAConfig(r=rank, alpha=2, places=["ffn.down"]))
        perturb(model, name, seed=i)
    options = {"density": DENSITY} if strategy != "cat" else {}
    rank = {"svd_rank": 16} if strategy == "ties" else {}
    model.average_adapter("x", ["a", "b"], [1, 1], strategy, False, **options, **rank)
    one, other, made = (module_of(model, name).delta_weight().detach() for name in "abx")
    for expert in range(3):
        updates = [one[expert], other[expert]]
        if strategy == "knots":
            u, s, vt = torch.linalg.svd(torch.cat(updates, 1), full_matrices=False)
            want = u[:, :3] @ elect([trim(part) for part in (s[:3, None] * vt[:3]).chunk(2, 1)])
        else:
            want = elect([*map(trim, updates)]) if strategy == "ties" else updates[0] + updates[1]
        torch.testing.assert_close(made[expert], want, atol=1e-5, rtol=1e-4)
