"""What trains: the adapter that was asked for and the prediction head, and nothing below the first adapted layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import adapters
from adapters import ConfigUnion, Fuse, Stack
from adapters.methods.invertible import NICE
from adapters.methods.trainable_tokens import TrainableTokens
from tests.contract.cases import BOTTLENECKS, CONFIGS, REPRESENTATIVE, carrying, every_pair, members
from tests.tiny import LANGUAGE_MODELS, TINY_MODELS, adapter_parameters, build, infer, inputs, labels, perturb

UNUSED = ("reft_layer.refts.a.units.1.",)
"""Weights that a config owns without using them: ReFT's second unit where no last positions are edited."""

VERA = ("shared_parameters.a.lora_A", "shared_parameters.a.lora_B")
FIXED = {"vera": VERA, "dvora": VERA, "randlora": ("shared_parameters.a.A", "shared_parameters.a.B")}
"""Random matrices which all sites share and which never train."""


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def heads_of(model: Any) -> set[str]:
    prefix = f"{model.base_model_prefix}."
    return {name for name, _ in model.named_parameters() if not name.startswith(prefix)}


def loss_of(model: Any, name: str, task: str) -> Any:
    return model(**inputs(name, task), labels=labels(name, task)).loss


@pytest.mark.versions
@every_pair()
def test_only_the_trained_adapter_and_the_head_get_gradients(method: str, name: str) -> None:
    model = carrying(name, method, method, task="classification")
    given = inputs(name, "classification")
    perturb(model, "b", seed=1)
    without = infer(model, given)
    model.set_active_adapters("b")
    other = infer(model, given)
    ours = adapter_parameters(model, "a")
    base = {key: p.detach().clone() for key, p in model.named_parameters() if key not in ours}

    model.train_adapter("a")
    assert model.training
    assert str(model.active_adapters) == "Stack[a]"
    fixed = FIXED.get(method, ())
    trained = {key: p for key, p in adapter_parameters(model, "a").items() if not key.endswith(tuple(fixed))}
    expected = set(trained) | heads_of(model)
    assert trainable(model) == expected
    loss_of(model, name, "classification").backward()
    with_gradient = {key for key, p in model.named_parameters() if p.grad is not None}
    assert with_gradient <= expected
    assert not {key for key in expected - with_gradient if not any(part in key for part in UNUSED)}

    start = infer(model.eval(), given)
    torch.optim.SGD(trained.values(), lr=0.5).step()
    assert not torch.equal(infer(model, given), start)
    for key, value in base.items():
        assert torch.equal(model.get_parameter(key), value), key
    model.set_active_adapters("b")
    torch.testing.assert_close(infer(model, given), other)
    model.set_active_adapters(None)
    assert torch.equal(infer(model, given), without)


@every_pair(methods=("seq_bn_inv", "lora", "mam", "loreft"), names=LANGUAGE_MODELS)
def test_a_language_models_output_embeddings_stay_frozen(method: str, name: str) -> None:
    model = carrying(name, method, task="lm")
    model.train_adapter("a")
    body = {key for key in heads_of(model) if "lm_head.dense" in key or "lm_head.layer_norm" in key}
    extra = trainable(model) - set(adapter_parameters(model, "a"))
    assert not any(p is q for p in model.get_input_embeddings().parameters() for q in _named(model, extra))
    assert not any(p is q for p in model.get_output_embeddings().parameters() for q in _named(model, extra))
    assert body <= extra <= heads_of(model)
    loss_of(model, name, "lm").backward()
    assert all(p.grad is None for p in model.get_output_embeddings().parameters())
    start = infer(model.eval(), inputs(name, "lm"))
    torch.optim.SGD(adapter_parameters(model, "a").values(), lr=0.5).step()
    assert not torch.equal(infer(model, inputs(name, "lm")), start)


def _named(model: Any, names: set[str]) -> list[Any]:
    return [model.get_parameter(name) for name in names]


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5-gated"])
def test_embeddings_train_when_asked(name: str) -> None:
    model = carrying(name, "lora", task="lm")
    model.train_adapter("a", train_embeddings=True)
    loss_of(model, name, "lm").backward()
    assert model.get_input_embeddings().weight.grad is not None
    assert model.get_output_embeddings().weight.grad is not None
    model.train_adapter("a")
    assert not model.get_input_embeddings().weight.requires_grad


def upper_only(config: Any, layers: int) -> Any:
    """`config` with adapters in the last of `layers` layers only."""
    if isinstance(config, ConfigUnion):
        return ConfigUnion(*(upper_only(member, layers) for member in config.configs))
    if "layers" in config:
        return config.replace(layers=[layers - 1])
    return config.replace(leave_out=list(range(layers - 1)))


def acts_in_layers(method: str, name: str) -> bool:
    return all(
        "prompt" not in str(m.get("architecture")) and not NICE.handles(m) and not TrainableTokens.handles(m)
        for m in members(CONFIGS[method])
    )


@every_pair(names=REPRESENTATIVE, where=acts_in_layers)
def test_no_graph_below_the_first_adapter(method: str, name: str) -> None:
    model, both = build(name), TINY_MODELS[name].kind == "encoder-decoder"
    model.add_adapter("a", config=upper_only(CONFIGS[method], 4 if both else 2))
    model.train_adapter("a")
    result = model(**inputs(name), output_hidden_states=True)
    if both:
        assert not any(h.requires_grad for h in result.encoder_hidden_states)
    hidden = result.decoder_hidden_states if both else result.hidden_states
    assert [h.requires_grad for h in hidden] == [False, False, True]


def test_several_adapters_train_together() -> None:
    model = carrying("bert", "seq_bn", "lora", "prefix_tuning")
    model.train_adapter(Stack("a", "b"))
    assert trainable(model) == set(adapter_parameters(model, "a", "b"))


@pytest.mark.parametrize("method", BOTTLENECKS)
@pytest.mark.parametrize("unfreeze", [False, True])
def test_fusion_layers_train(method: str, unfreeze: bool) -> None:
    model = carrying("bert", method, method, task="classification")
    perturb(model, "a")
    perturb(model, "b", seed=1)
    model.add_adapter_fusion(["a", "b"])
    model.train_adapter_fusion(Fuse("a", "b"), unfreeze_adapters=unfreeze)
    fusion = set(adapter_parameters(model, "a,b"))
    expected = fusion | heads_of(model) | (set(adapter_parameters(model, "a", "b")) if unfreeze else set())
    assert trainable(model) == expected
    (loss_of(model, "bert", "classification") + model.get_fusion_regularization_loss()).backward()
    assert {key for key, p in model.named_parameters() if p.grad is not None} == expected
    start = infer(model.eval(), inputs("bert"))
    torch.optim.SGD(adapter_parameters(model, "a,b").values(), lr=0.5).step()
    assert not torch.equal(infer(model, inputs("bert")), start)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("factorized", [True, False])
def test_a_fixed_compacter_rule_does_not_train(shared: bool, factorized: bool) -> None:
    model = build("bert")
    rule = {"shared_phm_rule": shared, "factorized_phm_rule": factorized}
    model.add_adapter("a", config=adapters.CompacterConfig(reduction_factor=4, learn_phm=False, **rule))
    model.train_adapter("a")
    rules = {key for key in adapter_parameters(model, "a") if "phm_rule" in key}
    assert rules
    assert trainable(model) == set(adapter_parameters(model, "a")) - rules


def test_freezing_and_unfreezing_the_base_model() -> None:
    model = carrying("bert", "seq_bn", task="classification")
    before = trainable(model)
    model.freeze_model()
    assert model.model_frozen
    assert trainable(model) == set(adapter_parameters(model, "a")) | heads_of(model)
    model.freeze_model(False)
    assert not model.model_frozen
    assert trainable(model) == before


def test_adding_and_activating_freeze_nothing() -> None:
    model = build("bert", "classification")
    before = trainable(model)
    model.add_adapter("a", config="seq_bn", set_active=True)
    model.set_active_adapters(None)
    assert trainable(model) - set(adapter_parameters(model, "a")) == before
