"""`Route` against sum_i g_i out_i, its life from adding to deleting, its loss, and PEFT's Arrow."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments

import adapters
from adapters import AdapterSetup, AdapterTrainer, Average, BatchSplit, Parallel, Route, RoutingConfig, Stack
from adapters.call import CALL
from adapters.checkpoint.layout import OWNED, SETUP_FILE
from adapters.errors import (
    AdapterError,
    AdapterNameError,
    CheckpointError,
    CompositionError,
    ConfigError,
    UnsupportedError,
)
from tests.contract.cases import CONFIGS, ONE_OF_EACH, carrying, every_pair
from tests.methods.reference import adapted, close, states, weights
from tests.tiny import LENGTH, ROWS, adapter_parameters, build, checkpoint, infer, inputs, output, owner, perturb

FILES = OWNED["routing"]
TOKENS = tuple(method for method in CONFIGS if method not in ("prompt_tuning", "trainable_tokens"))
"""Prompts put positions of their own in front of the sequence: only gates by sequence can choose among them. Tables of
embeddings read numbers of tokens, which gates cannot."""
SEQUENCES = tuple(method for method in ONE_OF_EACH if method != "trainable_tokens")
LORA = "lora[r=4]"


def routed(name: str, method: str, block: Any, config: Any = None, count: int = 2, **kwargs: Any) -> tuple[Any, Any]:
    """A model with adapters of a method and the gates of a block, which is active; and inputs."""
    model = carrying(name, *[method] * count, **kwargs)
    for i in range(count):
        perturb(model, "abc"[i], seed=i)
    model.add_adapter_routing(block, config, set_active=True)
    return model, inputs(name)


def asked(model: Any, given: Any, setup: Any, **kwargs: Any) -> Tensor:
    with AdapterSetup(setup):
        return infer(model, given, **kwargs)


@torch.no_grad()
def choose(model: Any, name: str, child: int | None) -> None:
    """Let the gates always take one child; None for all alike."""
    for key, parameter in adapter_parameters(model, name).items():
        parameter.zero_()
        if child is not None and key.endswith("bias"):
            parameter[child] = 50.0


# ------------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("top_k", [None, 1, 2])
@pytest.mark.parametrize("by", ["token", "sequence"])
def test_the_formula_at_a_linear_map(by: str, top_k: int | None) -> None:
    model = adapted("bert", *(adapters.LoRAConfig(r=4, alpha=6) for _ in range(3)))
    block = Route("a", None, Stack("b", "c"), by=by, top_k=top_k)
    model.add_adapter_routing(block)
    perturb(model, block.name)
    linear, x = model.encoder.layer[0].attention.self.query, states()
    outs = []
    with torch.no_grad():
        for setup in block:
            model.set_active_adapters(setup)
            outs.append(linear(x))
        model.set_active_adapters(block)
        found = linear(x)
    w = weights(linear, "adapter_routing_layer", block.name)
    scores = (x if by == "token" else x.mean(1, keepdim=True)) @ w["gate.weight"].T + w["gate.bias"]
    for row in scores.view(-1, 3):
        kept = row.sort(descending=True).values[(top_k or 3) - 1]
        row[row < kept] = float("-inf")
    gates = scores.exp() / scores.exp().sum(-1, keepdim=True)
    assert not top_k or int((gates > 0).sum(-1).max()) == top_k
    close(found, sum((gates[..., i, None] * out for i, out in enumerate(outs)), torch.zeros(())))


@every_pair(methods=TOKENS, names=("bert",))
def test_equal_gates_are_an_average_and_certain_ones_a_choice(method: str, name: str) -> None:
    check_gates(method, name, "token")


@pytest.mark.parametrize(
    ("config", "error", "why"),
    [
        (CONFIGS["trainable_tokens"], ConfigError, "no place where a, b act together"),
        ("lora[r=2,places=['embed']]", ConfigError, "no place where a, b act together"),
        ("lora[r=2,places=['embed','attn.q']]", CompositionError, "numbers of tokens"),
    ],
)
def test_tables_of_embeddings_have_no_gates(config: Any, error: type[Exception], why: str) -> None:
    model, given = build("bert"), inputs("bert")
    for adapter in "ab":
        model.add_adapter(adapter, config=config)
    before = infer(model, given)
    with pytest.raises(error, match=why):
        model.add_adapter_routing(Route("a", "b"), set_active=True)
    assert model.active_adapters is None
    assert torch.equal(infer(model, given), before)


@every_pair(methods=SEQUENCES, names=("bert", "gpt2", "llama", "t5", "bart", "vit"))
def test_gates_by_sequence(method: str, name: str) -> None:
    check_gates(method, name, "sequence")


def check_gates(method: str, name: str, by: str) -> None:
    block = Route("a", "b", by=by)
    model, given = routed(name, method, block)
    learned = infer(model, given)
    choose(model, "a,b", None)
    close(infer(model, given), asked(model, given, Average("a", "b")))
    assert not torch.allclose(infer(model, given), learned, atol=1e-6)
    for child, adapter in enumerate("ab"):
        choose(model, "a,b", child)
        close(infer(model, given), asked(model, given, adapter))


@every_pair(methods=("seq_bn", "lora", "loreft_ends", "prefix_tuning", "unipelt"), names=("bert", "llama"))
def test_rows_are_what_they_are_alone(method: str, name: str) -> None:
    for by in ("token", "sequence"):
        block = Route("a", None, by=by)
        model, given = routed(name, method, block)
        perturb(model, block.name)
        alone, of_b = infer(model, given), asked(model, given, "b")
        for i in range(ROWS):
            row = {key: value[i : i + 1] for key, value in given.items()}
            close(infer(model, row), alone[i : i + 1])
        close(asked(model, given, Parallel(block, "b")), torch.cat([alone, of_b]))
        close(asked(model, given, BatchSplit("b", block, batch_sizes=[1, 3])), torch.cat([of_b[:1], alone[1:]]))


def test_gates_by_sequence_skip_padding() -> None:
    model, given = routed("bert", "lora", Route("a", "b", by="sequence"))
    perturb(model, "a,b")
    short = {key: value[:1, :4] for key, value in given.items() if key == "input_ids"}
    padded = {
        "input_ids": torch.cat([short["input_ids"], torch.zeros(1, 3, dtype=torch.long)], 1),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0]]),
    }
    close(infer(model, padded)[:, :4], infer(model, short))


def test_scores_are_reported() -> None:
    for by, positions in (("token", LENGTH), ("sequence", 1)):
        model, given = routed("bert", "unipelt", Route("a", "b", by=by, top_k=1, name="mine"))
        plain = infer(model, given)
        result = model(**given, output_adapter_routing_scores=True)
        assert torch.equal(result.last_hidden_state.detach(), plain)
        layers = result.adapter_routing_scores["mine"]
        assert sorted(layers) == [0, 1]
        for places in layers.values():
            assert set(places) == {"attn.core", "attn.q", "attn.v", "output_adapter"}
            for array in places.values():
                assert array.shape == (ROWS, positions, 2) and set(array.ravel().tolist()) == {0.0, 1.0}
        assert "adapter_routing_scores" not in model(**given)


def test_maps_of_embeddings_are_undone_by_the_same_gates() -> None:
    model, given = routed("llama", "seq_bn_inv", Route("a", "b"), {"balance": 1.0}, task="lm")
    for child, adapter in enumerate("ab"):
        choose(model, "a,b", child)
        close(infer(model, given), asked(model, given, adapter))
    model.train()
    model.train_adapter_routing(Route("a", "b"))
    result = model(**given, output_adapter_routing_scores=True)
    assert result.adapter_routing_scores["a,b"][-1]["embed"].shape == (ROWS, LENGTH, 2)
    assert len(CALL.now.losses) == 3  # the embeddings and two layers, and nothing for the way back


# --------------------------------------------------------------------------------------------------------- loss


def balanced(top_k: int | None = None, by: str = "token") -> tuple[Any, Any, Any]:
    block = Route("a", "b", "c", by=by, top_k=top_k)
    model, given = routed("bert", "lora", block, RoutingConfig(by=by, balance=0.5), count=3)
    perturb(model, block.name)
    model.train_adapter_routing(block)
    return model, given, block


@pytest.mark.parametrize("top_k", [None, 1, 2])
@pytest.mark.parametrize("by", ["token", "sequence"])
def test_balance_loss(by: str, top_k: int | None) -> None:
    """balance * n * sum_i f_i P_i over attended tokens, or over sequences."""
    model, given, block = balanced(top_k, by)
    model(**given)
    found = model.get_routing_balance_loss()
    inputs_of: dict[str, Tensor] = {}
    model(**given)
    assert torch.equal(found, model.get_routing_balance_loss())  # that of the last call, not of all
    for key, module in model.named_modules():
        if key.endswith(f"adapter_routing_layer.{block.name}"):
            hook = module.register_forward_hook(lambda m, args, out, key=key: inputs_of.update({key: out.detach()}))
            assert hook is not None
    with torch.no_grad():
        model(**given)
    assert model.get_routing_balance_loss() == 0.0 and len(inputs_of) == 4
    mask = given["attention_mask"].bool()
    total = 0.0
    for scores in inputs_of.values():
        rows = scores[mask] if by == "token" else scores[:, 0]
        p = torch.softmax(rows, -1)
        k = top_k or 1
        f = torch.zeros(3)
        for row in rows:
            f[row.argsort(descending=True)[:k]] += 1 / (k * len(rows))
        total += 0.5 * 3 * float((f * p.mean(0)).sum())
    close(found.detach(), torch.tensor(total))
    found.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter_parameters(model, block.name).values())


def test_balance_loss_under_checkpointing() -> None:
    results = []
    for checkpointing in (False, True):
        model, given, block = balanced()
        if checkpointing:
            checkpoint(model)
        loss = output(model, given).pow(2).mean() + model.get_routing_balance_loss()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in adapter_parameters(model, block.name).values())])
    for one, two in zip(*results, strict=True):
        close(one, two)
    checkpoint(model, reentrant=True)
    with pytest.raises(UnsupportedError, match="use_reentrant"):
        model.get_routing_balance_loss()


def test_replicas_are_refused_a_loss_that_would_get_lost() -> None:
    model, given, _ = balanced()
    replica = copy.copy(model)
    replica.__dict__["_is_replica"] = True
    with pytest.raises(UnsupportedError, match="DistributedDataParallel"):
        replica(**given)


def test_losses_of_two_models_are_kept_apart() -> None:
    (one, given, _), (two, _, _) = balanced(), balanced(top_k=1)
    one(**given)
    expected = one.get_routing_balance_loss()
    two(**given)
    assert torch.equal(one.get_routing_balance_loss(), expected)
    assert not torch.equal(two.get_routing_balance_loss(), expected)
    with AdapterSetup("a"):
        one(**given)
    assert one.get_routing_balance_loss() == 0.0


def test_the_trainer_adds_it(tmp_path: Path) -> None:
    losses = {}
    for balance in (0.0, 2.0):
        torch.manual_seed(0)
        model = build("bert", "classification")
        for i, name in enumerate("ab"):
            torch.manual_seed(i)
            model.add_adapter(name, config=LORA)
            perturb(model, name, seed=i)
        torch.manual_seed(5)
        model.add_adapter_routing(["a", "b"], RoutingConfig(balance=balance))
        model.train_adapter_routing(Route("a", "b"))
        given = inputs("bert")
        rows = [{key: value[i] for key, value in given.items()} | {"labels": i % 2} for i in range(ROWS)]
        options = {"num_train_epochs": 1, "per_device_train_batch_size": ROWS, "report_to": [], "use_cpu": True}
        args = TrainingArguments(str(tmp_path / str(balance)), **options, save_strategy="no", logging_steps=1)
        trainer = AdapterTrainer(model, args, train_dataset=rows)
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        losses[balance] = trainer.train().training_loss
        changed = {owner(key) for key, p in model.named_parameters() if not torch.equal(before[key], p)}
        assert changed == {"a,b", None}  # the gates, and the head of the class
        trainer.save_model(str(tmp_path / "saved"))
        assert (tmp_path / "saved" / "a,b" / FILES.config).is_file()
    assert losses[2.0] > losses[0.0] + 1.0


# --------------------------------------------------------------------------------------------------------- life


def test_what_trains() -> None:
    block = Route("a", "b")
    model, given = routed("bert", "lora", block)
    for unfreeze, expected in ((False, {"a,b"}), (True, {"a,b", "a", "b"})):
        model.train_adapter_routing(block, unfreeze_adapters=unfreeze)
        assert {owner(key) for key, p in model.named_parameters() if p.requires_grad} == expected
        model.zero_grad()
        output(model, given).pow(2).mean().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.train_adapter("a")
    assert {owner(key) for key, p in model.named_parameters() if p.requires_grad} == {"a"}
    model.add_adapter_routing(Route("b", "a"))
    assert not any(p.requires_grad for p in adapter_parameters(model, "b,a").values())


@pytest.mark.parametrize("names", [("a", "b"), ("a", None), (None, "b", "a")])
@pytest.mark.parametrize("own_name", [None, "mine"])
def test_files(names: tuple[str | None, ...], own_name: str | None, tmp_path: Path) -> None:
    block = Route(*names, by="sequence", top_k=1, name=own_name)
    model, given = routed("bert", "lora", block, {"balance": 0.25})
    perturb(model, block.name)
    model.save_adapter_routing(tmp_path, block, meta_dict={"note": 1})
    data = json.loads((tmp_path / FILES.config).read_text())
    assert data["adapter_names"] == list(names) and data["name"] == block.name and data["note"] == 1
    assert data["config"] == {"by": "sequence", "top_k": 1, "balance": 0.25}
    fresh = carrying("bert", "lora", "lora")
    for i in range(2):
        perturb(fresh, "ab"[i], seed=i)
    info: dict[str, Any] = {}
    assert fresh.load_adapter_routing(tmp_path, set_active=True, loading_info=info) == block.name
    assert info == {"missing_keys": [], "unexpected_keys": []} and fresh.active_adapters == block
    assert torch.equal(infer(fresh, given), infer(model, given))
    assert fresh.load_adapter_routing(tmp_path, load_as="other") == "other"
    fresh.delete_adapter_routing(block)
    fresh.delete_adapter("a")
    assert not fresh.adapters_config.routings and not [k for k in fresh.state_dict() if "routing" in k]
    with pytest.raises(AdapterNameError, match="no adapter"):
        fresh.load_adapter_routing(tmp_path)


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    model, _ = routed("bert", "lora", Route("a", "b", name="mine"))
    model.save_adapter_routing(tmp_path, "mine")
    model.delete_adapter_routing("mine")
    model.add_adapter_routing(Route("b", "a", name="mine"))
    with pytest.raises(CheckpointError, match=r"combines a, b, but the routing 'mine' of this model b, a"):
        model.load_adapter_routing(tmp_path)


def test_set_ups_and_whole_models(tmp_path: Path) -> None:
    block = Stack("c", Route("a", None, "b", name="mine"))
    model, given = routed("bert", "seq_bn", block[1], count=3)
    perturb(model, "mine")
    expected = asked(model, given, block)
    model.save_adapter_setup(tmp_path / "setup", block)
    assert (tmp_path / "setup" / "mine" / FILES.config).is_file() and (tmp_path / "setup" / SETUP_FILE).is_file()
    fresh = build("bert")
    assert fresh.load_adapter_setup(tmp_path / "setup", set_active=True)[0] == block
    assert torch.equal(infer(fresh, given), expected)
    model.save_pretrained(tmp_path / "model")
    described = json.loads((tmp_path / "model" / "config.json").read_text())["adapters"]
    assert described["routing_name_map"] == {"mine": ["a", None, "b"]}
    opened = adapters.load_model(tmp_path / "model", type(model))
    opened.eval()
    assert torch.equal(asked(opened, given, block), expected)
    model.save_all_adapter_routings(tmp_path / "all")
    assert (tmp_path / "all" / "mine" / FILES.safetensors).is_file()


def test_copies() -> None:
    block = Route("a", "b", by="sequence")
    model, given = routed("llama", "lora", block)
    perturb(model, "a,b")
    expected = infer(model, given)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(infer(twin, given), expected)
        choose(twin, "a,b", 0)
        assert not torch.allclose(infer(twin, given), expected, atol=1e-4)
    assert torch.equal(infer(model, given), expected)
    model.adapter_routing_to(block, dtype=torch.float64)
    close(infer(model, given), expected)


# ----------------------------------------------------------------------------------------------------- refusals


REFUSED: list[Any] = [
    (lambda m: m.add_adapter_routing(["a", "nobody"]), AdapterNameError, "nobody"),
    (lambda m: m.add_adapter_routing([None]), AdapterNameError, "at least one"),
    (lambda m: m.add_adapter_routing(["a"], "tokn"), ConfigError, "Did you mean 'token'"),
    (lambda m: m.add_adapter_routing(["a"], {"by": "arrow"}), ConfigError, "by is 'arrow'"),
    (lambda m: m.add_adapter_routing(["a"], {"balance": -1.0}), ConfigError, "balance"),
    (lambda m: m.add_adapter_routing(["a"], name="x.y"), AdapterNameError, "'x.y'"),
    (lambda m: m.add_adapter_routing(Route("a", "b")), AdapterNameError, "overwrite_ok"),
    (lambda m: m.add_adapter_routing(Route("a", "c"), "sequence"), ConfigError, "by='token'"),
    (lambda m: m.add_adapter_routing(Route("a", "b", by="arrow")), ConfigError, "has no weights"),
    (lambda m: m.set_active_adapters(Route("b", "a")), CompositionError, "add_adapter_routing"),
    (lambda m: m.set_active_adapters(Route("a", "b", by="sequence")), CompositionError, "made with by='token'"),
    (lambda m: m.set_active_adapters(Route("a", "c", by="arrow")), CompositionError, "'c' has none"),
    (lambda m: m.set_active_adapters(Route("a", None, by="arrow")), CompositionError, "None has none"),
    (lambda m: m.set_active_adapters(Route("b", "a", name="a,b")), CompositionError, "made for a, b"),
    (lambda m: m.set_active_adapters(Route("a", "b", None, name="a,b")), CompositionError, "made for a, b"),
    (lambda m: m.add_adapter_routing(["b", "a"], {"top_k": 3}), CompositionError, "from 1 to 2"),
    (lambda m: m.train_adapter_routing("a"), CompositionError, "no Route block"),
    (lambda m: m.train_adapter_routing(Route("a", "b", by="arrow")), CompositionError, "no Route block"),
    (lambda m: m.save_adapter_routing("nowhere", "x"), AdapterNameError, "no routing 'x'"),
    (lambda m: m.add_adapter("b", config="seq_bn", overwrite_ok=True), ConfigError, "takes part in the routing"),
]


@pytest.mark.parametrize(("call", "error", "words"), REFUSED)
def test_what_cannot_be_is_refused_and_changes_nothing(call: Any, error: type[AdapterError], words: str) -> None:
    model, given = carrying("bert", "lora", "lora", "seq_bn"), inputs("bert")
    model.add_adapter_routing(["a", "b"], set_active=True)
    expected, keys = infer(model, given), list(model.state_dict())
    with pytest.raises(error, match=words):
        call(model)
    assert torch.equal(infer(model, given), expected) and list(model.state_dict()) == keys
    assert model.active_adapters == Route("a", "b") and list(model.adapters_config.routings) == ["a,b"]


def test_prompts_are_chosen_by_sequence_only() -> None:
    model = carrying("bert", "prompt_tuning", "prompt_tuning")
    with pytest.raises(CompositionError, match="by='sequence'"):
        model.add_adapter_routing(["a", "b"], set_active=True)
    assert not model.adapters_config.routings and not [key for key in model.state_dict() if "routing" in key]


# -------------------------------------------------------------------------------------------------------- arrow


def test_arrow_is_that_of_peft() -> None:
    peft_arrow = pytest.importorskip("peft.tuners.lora.arrow")
    from peft.tuners.lora.config import ArrowConfig

    model = adapted("bert", *(adapters.LoRAConfig(r=4, alpha=6) for _ in range(3)))
    linear, x = model.encoder.layer[0].attention.self.query, states()
    pairs = {n: weights(linear, "loras", n) for n in "abc"}
    for top_k in (1, 2, 3):
        model.set_active_adapters(Route("a", "b", "c", by="arrow", top_k=top_k))
        config = ArrowConfig(top_k=top_k)
        config.task_adapter_names, config.gks_adapter_names = list("abc"), []
        peer = peft_arrow.ArrowLoraLinearLayer(32, config)
        maps = [torch.nn.ModuleDict() for _ in "AB"]
        for name, w in pairs.items():
            for holder, key in zip(maps, ("lora_A", "lora_B"), strict=True):
                holder[name] = torch.nn.Linear(*reversed(w[key].shape), bias=False)
                holder[name].weight.data = w[key]
        with torch.no_grad():
            # its power iteration stops after 15 steps: ours is the exact vector that it comes near to
            found = peer.top_right_singular_vec_from_BA(pairs["a"]["lora_A"], pairs["a"]["lora_B"], iters=2000)
            close(found.abs(), linear.loras["a"].direction().abs())
            peer.register_buffer("prototypes", torch.stack([linear.loras[n].direction() for n in "abc"]), False)
            update = peer(x, *maps, torch.nn.Identity(), dict.fromkeys("abc", 6 / 4))
            close(linear(x), linear.forward(x) + update)


@pytest.mark.parametrize(
    "method", ["lora_everywhere", "dora", "vera", "mtl_lora", "loha", "lokr", "randlora", "adalora"]
)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_arrow_over_every_weight_update(method: str, name: str) -> None:
    model, given = carrying(name, method, method), inputs(name)
    perturb(model, "a")
    perturb(model, "b", seed=1)
    block = Route("a", "b", by="arrow", top_k=1)
    for key, module in model.named_modules():
        if key.endswith(".loras.a"):
            matrix = module.delta_weight().detach()
            v = module.direction()
            assert v.norm() == pytest.approx(1, abs=1e-4)
            assert (matrix @ v).norm() == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-3)
    model.set_active_adapters(block)
    result = model(**given, output_adapter_routing_scores=True)
    scores = [s for places in result.adapter_routing_scores["a,b"].values() for s in places.values()]
    assert scores and {tuple(s.shape[::2]) for s in scores} == {(ROWS, 2)}
    choices = torch.from_numpy(scores[0]).argmax(-1)
    assert 0 < choices.float().mean() < 1  # both are chosen
    expected = infer(model, given)
    for parameter in adapter_parameters(model, "a").values():
        parameter.data.mul_(-1.5)
    model.refresh_adapters()
    assert not torch.allclose(infer(model, given), expected)
