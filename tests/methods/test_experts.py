"""Adapters of packed experts: equal to weights that are merged by hand, in whatever way the experts are run."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import adapters
from adapters import (
    AdaLoRAConfig,
    Average,
    BatchSplit,
    DoRAConfig,
    DvoRAConfig,
    Fuse,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoRAConfig,
    MultiTask,
    OFTConfig,
    Parallel,
    RandLoRAConfig,
    Split,
    Stack,
    VBLoRAConfig,
    VeraConfig,
)
from adapters.errors import CompositionError, ConfigError, SizeError, UnsupportedError
from adapters.methods import METHODS
from adapters.methods.experts import PerExpert
from adapters.sites.site import ExpertsSite
from tests.tiny import adapter_parameters, checkpoint, hooks, infer, output, perturb

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 48,
    "attention_dropout": 0.0,
}
FOUR = {"num_local_experts": 4, "intermediate_size": 24}
TYPES: dict[str, dict[str, Any]] = {
    "mixtral": FOUR,
    "gpt_oss": {**FOUR, "num_hidden_layers": 1},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "num_hidden_layers": 1},
    "olmoe": {"num_experts": 4, "intermediate_size": 24, "num_hidden_layers": 1},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "moe_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "intermediate_size": 24,
        "num_key_value_heads": 4,
    },
}
INTERLEAVED, TRANSPOSED = {"gpt_oss"}, {"gpt_oss"}
WAYS = ("eager", "batched_mm", "grouped_mm")
PLACES = ["ffn.up", "ffn.down"]


@cache
def _base(model_type: str, head: bool) -> Any:
    config = AutoConfig.for_model(model_type, **{**SIZES, **TYPES[model_type]})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = (AutoModelForCausalLM if head else AutoModel).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.15 * torch.randn(parameter.shape) + (1.0 if parameter.dim() == 1 else 0.0))
        return model.eval()


def build(model_type: str = "mixtral", head: bool = False) -> Any:
    return adapters.init(copy.deepcopy(_base(model_type, head)))


def given(rows: int = 4) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, 64, (rows, 5), generator=torch.Generator().manual_seed(1))}


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5, rtol=1e-4)


def sites(model: Any) -> list[ExpertsSite]:
    return [site for site in model._engine.sites if isinstance(site, ExpertsSite) and site.role]


# ------------------------------------------------------------------------- weights merged by hand, one expert at a time

Own = Mapping[str, Tensor]
Merge = Callable[[Tensor, Own, Own], Tensor]
"""(W [O, I] of one expert, its tensors, what all sites share) -> the weight with the adapter."""


def _dora(w: Tensor, m: Tensor, delta: Tensor) -> Tensor:
    return m.view(-1, 1) / (w + delta).norm(dim=1, keepdim=True) * (w + 2 * delta)


def _vera(t: Own, shared: Own, w: Tensor) -> Tensor:
    up, down = shared["lora_B"][: len(w)], shared["lora_A"][:, : w.shape[1]]
    return t["vera_B"] @ up @ t["vera_D"] @ down


def _lokr(t: Own) -> Tensor:
    whole = t["updates.0.D"] if "updates.0.D" in t else t["updates.0.D_1"] @ t["updates.0.D_2"]
    return torch.kron(t["updates.0.C"], whole)


def _randlora(w: Tensor, t: Own, shared: Own) -> Tensor:
    longer, shorter = max(w.shape), min(w.shape)
    inner, outer = t["updates.0.L"], t["updates.0.G"]
    total = torch.zeros(longer, shorter)
    for j in range(len(inner)):
        total += shared["B"][j, :longer] @ torch.diag(inner[j]) @ shared["A"][:, :shorter] @ torch.diag(outer[j])
    return total if w.shape[0] >= w.shape[1] else total.T


def _vblora(t: Own, shared: Own) -> Tensor:
    def mixed(logits: Tensor) -> Tensor:
        best, numbers = logits.topk(2)
        return sum(p * shared["vectors"][i] for p, i in zip(best.softmax(0), numbers))  # type: ignore[return-value]

    a = torch.stack([torch.cat([mixed(piece) for piece in row]) for row in t["logits_A"]])
    ranks = t["logits_B"].shape[1]
    b = torch.stack([torch.cat([mixed(piece[r]) for piece in t["logits_B"]]) for r in range(ranks)], 1)
    return b @ a


CONFIGS: dict[str, tuple[Any, Merge]] = {
    "LoRA": (LoRAConfig(r=2, alpha=4), lambda w, t, s: w + 2 * t["lora_B"] @ t["lora_A"]),
    "DoRA": (DoRAConfig(r=2, alpha=4), lambda w, t, s: _dora(w, t["m.weight"], t["lora_B"] @ t["lora_A"])),
    "VeRA": (VeraConfig(r=2, alpha=4), lambda w, t, s: w + 2 * _vera(t, s, w)),
    "DVoRA": (DvoRAConfig(r=2, alpha=4), lambda w, t, s: _dora(w, t["m.weight"], _vera(t, s, w))),
    "IA3": (IA3Config(), lambda w, t, s: w * t["lora_B"]),
    "LoHa": (
        LoHaConfig(r=2, alpha=4),
        lambda w, t, s: w + 2 * (t["updates.0.B_1"] @ t["updates.0.A_1"]) * (t["updates.0.B_2"] @ t["updates.0.A_2"]),
    ),
    "LoKr": (LoKrConfig(r=2, alpha=4), lambda w, t, s: w + 2 * _lokr(t)),
    "RandLoRA": (RandLoRAConfig(r=4, alpha=8), lambda w, t, s: w + 2 * _randlora(w, t, s)),
    "VBLoRA": (VBLoRAConfig(r=2, num_vectors=8, vector_length=4), lambda w, t, s: w + _vblora(t, s)),
}


def up_rows(model_type: str, width: int) -> slice:
    """The rows of ffn.up in a fused weight of gate and up."""
    return slice(1, None, 2) if model_type in INTERLEAVED else slice(width // 2, None)


@torch.no_grad()
def merged_by_hand(model: Any, name: str, merge: Merge, model_type: str) -> Any:
    """The base model without any adapter, whose experts have weights with the adapter in them."""
    plain = copy.deepcopy(_base(model_type, head=False))
    plain.set_experts_implementation("eager")
    values = {key: p.detach() for key, p in adapter_parameters(model, name).items()}
    start = f"shared_parameters.{name}."
    shared = {key[len(start) :].rpartition(".")[2]: value for key, value in values.items() if key.startswith(start)}
    for site in sites(model):
        start = f"{site.path}.loras.{name}."
        own = {key[len(start) :]: value for key, value in values.items() if key.startswith(start)}
        stored = plain.get_parameter(site.address)
        bias = plain.get_submodule(site.address.rpartition(".")[0])._parameters.get(f"{site.parameter}_bias")
        for expert in range(len(stored)):
            weight = stored[expert].T if model_type in TRANSPOSED else stored[expert]
            rows = up_rows(model_type, len(weight)) if site.parts else slice(None)
            tensors = {key: value[expert] for key, value in own.items()}
            if "m.weight" in tensors:  # lengths of all rows: parts that are not adapted have no update
                assert site.parts or len(tensors["m.weight"]) == len(weight)
                full = {**tensors}
                new = _whole_rows(weight, full, merge, shared, rows)
            else:
                new = weight.clone()
                new[rows] = merge(weight[rows], tensors, shared)
            if bias is not None and (scale := _scale(weight, new, tensors, rows)) is not None:
                bias[expert] *= scale
            weight.copy_(new)
    return plain


def _whole_rows(weight: Tensor, tensors: dict[str, Tensor], merge: Merge, shared: Own, rows: slice) -> Tensor:
    lengths = tensors["m.weight"].view(-1, 1)
    new = lengths / weight.norm(dim=1, keepdim=True) * weight
    new[rows] = merge(weight[rows], {**tensors, "m.weight": tensors["m.weight"][rows]}, shared)
    return new


def _scale(weight: Tensor, new: Tensor, tensors: Own, rows: slice) -> Tensor | None:
    """By what methods that scale whole outputs scale biases too."""
    if "m.weight" not in tensors and set(tensors) != {"lora_B"}:
        return None
    scale = torch.ones(len(weight))
    if "m.weight" not in tensors:
        scale[rows] = tensors["lora_B"].flatten()
        return scale
    lengths = tensors["m.weight"].flatten()
    base = weight.clone()
    if "lora_A" in tensors:
        base[rows] += tensors["lora_B"] @ tensors["lora_A"]
        return lengths / base.norm(dim=1)
    return None


def test_all_methods_are_here() -> None:
    assert {method.__name__ for method in METHODS if method.per_expert} == set(CONFIGS)


CASES = [("mixtral", method) for method in CONFIGS] + [
    *(("gpt_oss", method) for method in ("LoRA", "DoRA", "IA3", "LoHa")),
    *((kind, "LoRA") for kind in ("qwen3_moe", "olmoe", "deepseek_v3")),
]


@pytest.mark.parametrize(("model_type", "method"), CASES)
def test_equal_to_weights_merged_by_hand(model_type: str, method: str) -> None:
    """For every implementation; every tensor trains and no other; merged and reset; nothing is left behind."""
    config, merge = CONFIGS[method]
    model, inputs = build(model_type), given()
    before, plain = {key: value.clone() for key, value in model.state_dict().items()}, {}
    for way in WAYS:
        model.set_experts_implementation(way)
        plain[way] = infer(model, inputs)
    model.add_adapter("a", config=config.replace(places=PLACES), set_active=True)
    perturb(model, "a")
    expected = infer(merged_by_hand(model, "a", merge, model_type), inputs)
    assert not close(expected, plain["eager"])
    model.train_adapter("a")
    trained = {key for key, p in adapter_parameters(model, "a").items() if p.requires_grad}
    for way in WAYS:
        model.eval().set_experts_implementation(way)
        assert close(infer(model, inputs), expected), way
        (output(model, inputs) ** 2).sum().backward()
        assert {key for key, p in model.named_parameters() if p.grad is not None} == trained
        assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.grad is not None)
        model.zero_grad()
    model.merge_adapter("a")
    assert close(infer(model, inputs), expected)
    model.reset_adapter()
    model.delete_adapter("a")
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert hooks(model) == [] and all(torch.equal(infer_as(model, way, inputs), plain[way]) for way in WAYS)


def infer_as(model: Any, way: str, inputs: Mapping[str, Tensor]) -> Tensor:
    model.set_experts_implementation(way)
    return infer(model, inputs)


@pytest.mark.parametrize("model_type", TYPES)
def test_where_roles_are(model_type: str) -> None:
    """Only the rows of ffn.up, of ffn.gate, change, whatever their order."""
    model = build(model_type)
    for role, start in (("ffn.gate", 0), ("ffn.up", 1)):
        model.add_adapter("a", config=LoRAConfig(r=2, places=[role]))
        perturb(model, "a")
        site = next(site for site in sites(model) if site.parts)
        old = site.weight.detach().clone()
        model.merge_adapter("a")
        changed = (site.weight != old).any(2)
        model.reset_adapter()
        expected = torch.zeros_like(changed)
        width = changed.shape[1]
        if model_type in INTERLEAVED:
            expected[:, start::2] = True
        else:
            expected[:, start * width // 2 : (start + 1) * width // 2] = True
        assert torch.equal(changed, expected)
        model.delete_adapter("a")


def test_flags_mean_experts_too() -> None:
    model = build()
    model.add_adapter("a", config=LoRAConfig(intermediate_lora=True, output_lora=True, selfattn_lora=False))
    model.add_adapter("b", config=LoRAConfig(places=PLACES))
    names = [{key.replace(f".{name}.", ".") for key in adapter_parameters(model, name)} for name in "ab"]
    assert names[0] == names[1]
    assert names[0] == {
        f"layers.{layer}.mlp.experts.adapted.{parameter}.loras.lora_{letter}"
        for layer in (0, 1)
        for parameter in ("gate_up_proj", "down_proj")
        for letter in "AB"
    }
    shapes = {key.rpartition("adapted.")[2]: tuple(p.shape) for key, p in adapter_parameters(model, "b").items()}
    assert shapes["gate_up_proj.loras.b.lora_A"] == (4, 8, 32) and shapes["gate_up_proj.loras.b.lora_B"] == (4, 24, 8)
    assert shapes["down_proj.loras.b.lora_A"] == (4, 8, 24) and shapes["down_proj.loras.b.lora_B"] == (4, 32, 8)


def test_by_the_path_of_the_parameter() -> None:
    """All columns of one layer; and the router, whose weight is a parameter of its own."""
    model, inputs = build(), given()
    plain = infer(model, inputs)
    model.add_adapter("a", config=LoRAConfig(r=2, places=["layers.1.mlp.experts.down_proj", "1:ffn.up"]))
    assert all(key.startswith("layers.1.mlp.experts.adapted") for key in adapter_parameters(model, "a"))
    model.add_adapter("router", config=LoRAConfig(r=2, alpha=2, places=["layers.0.mlp.gate.weight"]), set_active=True)
    perturb(model, "router")
    own = {key.rpartition(".")[2]: p.detach() for key, p in adapter_parameters(model, "router").items()}
    other = copy.deepcopy(_base("mixtral", head=False))
    with torch.no_grad():
        other.layers[0].mlp.gate.weight += own["lora_B"][0] @ own["lora_A"][0]
    acted = infer(model, inputs)
    assert close(acted, infer(other, inputs)) and not close(acted, plain)
    model.merge_adapter("router")
    assert close(infer(model, inputs), acted)
    model.reset_adapter()
    assert torch.equal(model.layers[0].mlp.gate.weight, _base("mixtral", head=False).layers[0].mlp.gate.weight)


@pytest.mark.parametrize("way", WAYS)
def test_rows_are_what_they_are_alone(way: str) -> None:
    model, inputs = build(), given()
    model.set_experts_implementation(way)
    for name in "ab":
        model.add_adapter(name, config=LoRAConfig(r=2, places=PLACES))
    model.add_adapter("c", config=IA3Config(places=["ffn.down"]))
    perturb(model, *"abc")

    def alone(setup: Any) -> Tensor:
        model.set_active_adapters(setup)
        return infer(model, inputs)

    one = {name: alone(name) for name in (None, "a", "b", "c")}
    mixed = alone(BatchSplit("a", None, "c", batch_sizes=[1, 2, 1]))
    assert close(mixed[:1], one["a"][:1]) and close(mixed[1:3], one[None][1:3]) and close(mixed[3:], one["c"][3:])
    both = alone(Parallel("a", "c"))
    assert close(both[:4], one["a"]) and close(both[4:], one["c"])
    average = alone(Average("a", "c", weights=[0.25, 0.75]))
    nested = alone(BatchSplit(Average("a", "c", weights=[0.25, 0.75]), "b", batch_sizes=[3, 1]))
    assert close(nested[:3], average[:3]) and close(nested[3:], one["b"][3:])
    model.set_active_adapters(MultiTask("a", "b"))
    tasks = infer(model, {**inputs, "task_ids": torch.tensor([1, 0, 0, 1])})
    assert close(tasks[1:3], one["a"][1:3]) and close(tasks[::3], one["b"][::3])
    split = alone(Split("a", "b", splits=[2, 3]))
    assert close(split[:, :2], one["a"][:, :2]) and not close(split[:, 2:], one["a"][:, 2:])


def test_an_average_is_that_of_the_updates() -> None:
    model, inputs = build(), given()
    for name in "ab":
        model.add_adapter(name, config=LoRAConfig(r=2, alpha=2, places=PLACES))
    perturb(model, "a", "b")
    model.set_active_adapters(Average("a", "b", weights=[0.25, 0.75]))
    other = copy.deepcopy(_base("mixtral", head=False))
    with torch.no_grad():
        for site in sites(model):
            for name, weight in (("a", 0.25), ("b", 0.75)):
                module = model.get_submodule(f"{site.path}.loras.{name}")
                rows = up_rows("mixtral", site.out_features) if site.parts else slice(None)
                other.get_parameter(site.address)[:, rows] += weight * (module.lora_B @ module.lora_A)
    assert close(infer(model, inputs), infer(other, inputs))


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        (Stack("a", "b"), "both act at the experts of layers.0.mlp.experts.gate_up_proj"),
        (BatchSplit(Stack("a", "b"), "a", batch_sizes=[2, 2]), "both act at the experts"),
        (Average("a", BatchSplit("a", "b", batch_sizes=[2, 2])), "can stand around all others"),
    ],
)
def test_what_is_refused_when_it_is_set(setup: Any, reason: str) -> None:
    model = build()
    for name in "ab":
        model.add_adapter(name, config=LoRAConfig(r=2, places=PLACES))
    model.set_active_adapters("a")
    with pytest.raises(CompositionError, match=reason):
        model.set_active_adapters(setup)
    assert model.active_adapters == Stack("a")


def test_fusions_have_no_layer_inside_of_experts() -> None:
    model, inputs = build(), given()
    for name in "ab":
        model.add_adapter(name, config=LoRAConfig(r=2, places=[*PLACES, "attn.q"]))
    with pytest.raises(ConfigError, match=r"nothing can combine these adapters at ffn.up.*acts inside of experts"):
        model.add_adapter_fusion(["a", "b"])
    with pytest.raises(CompositionError):
        model.set_active_adapters(Fuse("a", "b"))
    infer(model, inputs)


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        (LoRAConfig(use_gating=True, places=PLACES), ConfigError, "experts are given single tokens"),
        (LoRAConfig(use_bias=True, places=PLACES), ConfigError, "use_bias and dora_form"),
        (DoRAConfig(dora_form="weight", places=PLACES), ConfigError, "use_bias and dora_form"),
        (AdaLoRAConfig(places=PLACES), UnsupportedError, "no linear map of its own"),
        (OFTConfig(places=["ffn.down"]), UnsupportedError, "no linear map of its own"),
        (LoRAConfig(places=["*.experts.up_proj"]), ConfigError, "ffn.down"),
    ],
)
def test_what_cannot_act_there(config: Any, error: type[Exception], reason: str) -> None:
    model = build()
    before = list(model.state_dict())
    with pytest.raises(error, match=reason):
        model.add_adapter("a", config=config)
    assert list(model.state_dict()) == before and "a" not in model.adapters_config


def test_wrong_sizes_are_noticed() -> None:
    model = build()
    for name in "ab":
        model.add_adapter(name, config=LoRAConfig(r=2, places=PLACES))
    model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[2, 3]))
    with pytest.raises(SizeError, match="cover 5 rows, but the batch has 4"):
        infer(model, given())
    model.set_active_adapters("a")
    infer(model, given())


@pytest.mark.parametrize("method", CONFIGS)
def test_saved_and_loaded(method: str, tmp_path: Path) -> None:
    model, inputs = build(), given()
    model.add_adapter("a", config=CONFIGS[method][0].replace(places=PLACES), set_active=True)
    perturb(model, "a")
    model.save_adapter(str(tmp_path), "a")
    assert set(load_file(tmp_path / "adapter.safetensors")) == set(adapter_parameters(model, "a"))
    other = build()
    other.load_adapter(str(tmp_path), set_active=True)
    assert torch.equal(infer(other, inputs), infer(model, inputs))


def test_the_whole_model_saved_and_loaded(tmp_path: Path) -> None:
    """Transformers takes packed experts apart when it saves them; adapters stay what they are."""
    model, inputs = build(head=True), given()
    model.add_adapter("a", config=LoRAConfig(r=2, places=PLACES), set_active=True)
    perturb(model, "a")
    model.save_pretrained(str(tmp_path))
    loaded = adapters.load_model(str(tmp_path), AutoModelForCausalLM)
    loaded.set_active_adapters("a")
    assert close(infer(loaded.eval(), inputs), infer(model, inputs))


def test_copies_and_pickles() -> None:
    model, inputs = build(), given()
    model.add_adapter("a", config=DoRAConfig(r=2, places=PLACES), set_active=True)
    perturb(model, "a")
    expected = infer(model, inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(infer(other, inputs), expected)
        perturb(other, "a", seed=3)
        assert not close(infer(other, inputs), expected)
    assert torch.equal(infer(model, inputs), expected)


def test_weights_of_other_types() -> None:
    model, inputs = build().to(torch.bfloat16), given()
    plain = infer(model, inputs)
    model.add_adapter("a", config=LoRAConfig(r=2, places=PLACES, dtype="float32"), set_active=True)
    for way in WAYS:
        assert torch.equal(infer_as(model, way, inputs), infer_as(model, way, inputs))
        assert (infer(model, inputs).float() - plain.float()).abs().max() < 0.2
    perturb(model, "a")
    found = [infer_as(model, way, inputs).float() for way in WAYS]
    assert not torch.allclose(found[0], plain.float(), atol=0.3)
    assert all(torch.allclose(one, found[0], atol=0.3) for one in found)


def test_dropout_is_of_every_token() -> None:
    """In training it changes the update alone; in evaluation nothing."""
    model, inputs = build(), given()
    model.add_adapter("a", config=LoRAConfig(r=2, dropout=0.5, places=PLACES), set_active=True)
    start = infer(model, inputs)
    model.train()
    assert close(infer(model, inputs), start)  # B is 0 still, and the model has no dropout of its own
    perturb(model, "a")
    torch.manual_seed(0)
    assert not close(infer(model, inputs), infer(model, inputs))
    model.eval()
    assert torch.equal(infer(model, inputs), infer(model, inputs))


def test_checkpointed_layers_give_equal_gradients() -> None:
    model, inputs = build(), given()
    for name in "ab":
        model.add_adapter(name, config=LoRAConfig(r=2, places=PLACES))
    perturb(model, "a", "b")
    model.train_adapter(BatchSplit("a", "b", batch_sizes=[1, 3]))
    found = []
    for enable in (False, True):
        checkpoint(model, enable)
        model.train()
        (output(model, inputs) ** 2).sum().backward()
        found.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert found[0].keys() == found[1].keys() and found[0]
    assert all(torch.allclose(found[0][key], found[1][key], rtol=1e-4, atol=1e-3) for key in found[0])


@pytest.mark.parametrize("way", ["batched_mm", "grouped_mm"])
def test_compiled_as_one_graph_where_the_model_is(way: str) -> None:
    model, inputs = build("qwen3_moe"), given()
    model.set_experts_implementation(way)
    model.add_adapter("a", config=LoRAConfig(r=2, places=PLACES), set_active=True)
    perturb(model, "a")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert close(infer(compiled, inputs), infer(model, inputs))


class Made(TorchDispatchMode):
    """Notes the sizes of all tensors that are made, and no views."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out._base is None and "as_strided" not in str(func):
            known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
            if out.untyped_storage().data_ptr() not in known:
                self.sizes.add(tuple(sorted(out.shape)))
        return out


@pytest.mark.parametrize("way", ["eager", "grouped_mm"])
def test_no_weight_is_made_anew(way: str) -> None:
    """Of the update of an expert there are only factors, in a call and in its backward pass."""
    model, inputs = build("qwen3_moe"), given()
    model.set_experts_implementation(way)
    model.add_adapter("a", config=LoRAConfig(r=2, places=PLACES), set_active=True)
    model.train_adapter("a")
    shapes = {tuple(sorted(shape)) for site in sites(model) for shape in (site.weight.shape, site.weight[0].shape)}
    with Made() as made:
        output(model, inputs).sum().backward()
    assert made.sizes and not made.sizes & shapes


def test_generated_with_a_cache_as_without() -> None:
    model, inputs = build(head=True), given()
    for name in "ab":
        model.add_adapter(name, config=LoRAConfig(r=2, places=PLACES))
    perturb(model, "a", "b")
    model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[1, 3]))
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    one = model.generate(**inputs, **options)
    assert torch.equal(one, model.generate(**inputs, **options, use_cache=False))
    model.set_active_adapters("a")
    assert torch.equal(one[:1], model.generate(input_ids=inputs["input_ids"][:1], **options))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_equal_to_peft() -> None:
    """The same tensors in PEFT's `target_parameters` give the same outputs."""
    peft = pytest.importorskip("peft")
    model, inputs = build(), given()
    model.add_adapter(
        "a", config=LoRAConfig(r=2, alpha=4, places=["*.experts.gate_up_proj", "ffn.down"]), set_active=True
    )
    perturb(model, "a")
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=[], target_parameters=names)
    theirs = peft.get_peft_model(copy.deepcopy(_base("mixtral", head=False)), config)
    theirs.base_model.model.set_experts_implementation("eager")
    moved = 0
    for layer in range(2):
        outer = theirs.base_model.model.layers[layer].mlp.experts
        found = {outer.parameter_name: outer, outer.base_layer.parameter_name: outer.base_layer}
        for parameter, wrapper in found.items():
            module = model.get_submodule(f"layers.{layer}.mlp.experts.adapted.{parameter}.loras.a")
            down, up = module.effect().factors  # gate and up have a rank of 2 each, which makes one of 4
            down, up = (
                nn.functional.pad(down, (0, 0, 0, 4 - down.shape[1])),
                nn.functional.pad(up, (0, 4 - up.shape[2])),
            )
            with torch.no_grad():
                a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
                a.copy_(down.reshape(a.shape))
                b.copy_(up.permute(1, 2, 0).reshape(b.shape))
            moved += 1
    assert moved == 4
    assert close(infer(model, inputs), infer(theirs.eval(), inputs))


def test_modules_of_experts_are_listed() -> None:
    model = build()
    model.add_adapter("a", config=LoRAConfig(r=2, places=PLACES))
    found = [module for layer in model.get_adapter("a").values() for module in layer.values()]
    assert found and all(isinstance(module, PerExpert) for module in found)
    assert "a" in model.adapter_summary()
