"""Gradient checkpointing changes no gradient, whatever is active when the layers run again."""

from __future__ import annotations

import contextlib
import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

import adapters
from adapters import AdapterSetup, Average, BatchSplit, Fuse, MultiTask, Parallel, Route, Split, Stack
from tests.contract.cases import CONFIGS, REPRESENTATIVE, carrying, every_pair
from tests.tiny import LENGTH, adapter_parameters, build, checkpoint, inputs, perturb

Gradients = dict[str, Tensor]


def training(name: str, *methods: str, checkpointing: bool, reentrant: bool = False, **kwargs: Any) -> Any:
    """A model that trains adapters a, b, c, of which a is active."""
    model = carrying(name, *methods, **kwargs)
    names = ("a", "b", "c")[: len(methods)]
    for i, adapter in enumerate(names):
        perturb(model, adapter, scale=0.1, seed=i)
    model.train_adapter(Average(*names))
    model.set_active_adapters("a")
    if checkpointing:
        checkpoint(model, reentrant=reentrant)
    return model


def loss_of(model: Any, given: Any, **kwargs: Any) -> Tensor:
    if "pixel_values" not in given:
        kwargs["use_cache"] = False
    result = model(**given, **kwargs)
    return (result.last_hidden_state * torch.linspace(-1, 1, 32)).pow(2).sum()


def gradients(model: Any) -> Gradients:
    return {k: p.grad for k, p in adapter_parameters(model, "a", "b", "c", "a,b").items() if p.grad is not None}


def assert_same(one: Gradients, two: Gradients) -> None:
    assert set(one) == set(two) and one
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.versions
@every_pair(names=(*REPRESENTATIVE, "distilbert"))
def test_gradients_agree(method: str, name: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = training(name, method, checkpointing=checkpointing)
        loss_of(model, inputs(name)).backward()
        results.append(gradients(model))
    assert_same(*results)


CONTEXTS: dict[str, Any] = {
    "b": "b",
    "none": None,
    "Stack": Stack("b", "a"),
    "Parallel": Parallel("b", "a"),
    "Average": Average("a", "b"),
    "BatchSplit": BatchSplit("b", None, batch_sizes=[1, 3]),
}


@every_pair(names=("bert", "t5"))
def test_the_context_was_left_before_backward(method: str, name: str) -> None:
    """And another set-up is in force then: the layers run again under the one of the forward call."""
    results = []
    for checkpointing in (False, True):
        model = training(name, method, method, checkpointing=checkpointing)
        with AdapterSetup("b"):
            loss = loss_of(model, inputs(name))
        with AdapterSetup("a"):
            loss.backward()
        results.append(gradients(model))
        assert not {key for key in results[-1] if ".a." in key}
    assert_same(*results)


@pytest.mark.parametrize("inside", CONTEXTS)
@pytest.mark.parametrize("outside", CONTEXTS)
@pytest.mark.parametrize("method", ["seq_bn", "prefix_tuning"])
def test_every_change_of_set_up_before_backward(inside: str, outside: str, method: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = training("bert", method, method, checkpointing=checkpointing)
        with AdapterSetup(CONTEXTS[inside]):
            loss = loss_of(model, inputs("bert"))
        with AdapterSetup(CONTEXTS[outside]):
            if loss.requires_grad:
                loss.backward()
        results.append(gradients(model))
    if inside == "none":
        assert results == [{}, {}]
    else:
        assert_same(*results)


@pytest.mark.parametrize("change", ["activate", "deactivate", "skip layers", "add", "other model"])
@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_the_model_changes_before_backward(change: str, name: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = training(name, "unipelt", "seq_bn", checkpointing=checkpointing)
        loss = loss_of(model, inputs(name))
        if change == "activate":
            model.set_active_adapters("b")
        elif change == "deactivate":
            model.set_active_adapters(None)
        elif change == "skip layers":
            model.set_active_adapters("a", skip_layers=[0])
        elif change == "add":
            model.add_adapter("c", config="seq_bn", set_active=True)
        else:
            loss_of(training("gpt2", "lora", checkpointing=checkpointing), inputs("gpt2")).backward()
        loss.backward()
        results.append(gradients(model))
        assert not {key for key in results[-1] if ".b." in key or ".c." in key}
    assert_same(*results)


@pytest.mark.parametrize(
    "setup",
    [
        Parallel("a", "b", None),
        Stack("c", Parallel("a", "b")),
        Fuse("a", "b"),
        Route("a", None, "b", by="sequence", top_k=2, name="routes"),
        Split("a", "b", splits=[3, LENGTH - 3]),
        MultiTask("a", "b"),
        BatchSplit("a", Average("a", "b"), batch_sizes=2),
    ],
    ids=str,
)
def test_blocks(setup: Any) -> None:
    results = []
    extra = {"task_ids": torch.tensor([0, 1, 1, 0])} if isinstance(setup, MultiTask) else {}
    for checkpointing in (False, True):
        model = training("bert", "seq_bn", "seq_bn", "lora", checkpointing=checkpointing)
        torch.manual_seed(5)
        model.add_adapter_fusion(["a", "b"])
        perturb(model, "a,b", scale=0.1)
        if isinstance(setup, Route):
            model.add_adapter_routing(setup)
        with AdapterSetup(setup):
            loss = loss_of(model, inputs("bert"), **extra)
        with AdapterSetup("c"):
            loss.backward()
        results.append(gradients(model))
    assert_same(*results)


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_parallel_for_every_layout(name: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = training(name, "unipelt", "loreft_ends", checkpointing=checkpointing)
        with AdapterSetup(Parallel("a", "b")):
            loss = loss_of(model, inputs(name))
        loss.backward()
        results.append(gradients(model))
    assert_same(*results)


def test_backward_on_another_thread() -> None:
    results = []
    for checkpointing in (False, True):
        model = training("bert", "unipelt", "seq_bn", checkpointing=checkpointing)
        with AdapterSetup(Parallel("b", "a")):
            loss = loss_of(model, inputs("bert"))
            thread = threading.Thread(target=loss.backward)
            thread.start()
            thread.join()
        results.append(gradients(model))
    assert_same(*results)


def test_two_models_and_two_losses() -> None:
    """Layers that run again must not leave anything behind for calls of other models."""
    results = []
    for checkpointing in (False, True):
        one = training("bert", "seq_bn", "loreft", checkpointing=checkpointing)
        two = training("t5", "prefix_tuning", "lora", checkpointing=checkpointing)
        with AdapterSetup("b"):
            first = loss_of(one, inputs("bert"))
        second = loss_of(two, inputs("t5"))
        (first + second).backward()
        results.append({**gradients(one), **{f"two.{k}": g for k, g in gradients(two).items()}})
    assert_same(*results)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_enabled_before_or_after_init(name: str, early: bool) -> None:
    model = build(name, adapted=False)
    if early:
        checkpoint(model)
    adapters.init(model)
    torch.manual_seed(0)
    model.add_adapter("a", config=CONFIGS["seq_bn"])
    perturb(model, "a", scale=0.1)
    model.train_adapter("a")
    if not early:
        checkpoint(model)
    loss = loss_of(model, inputs(name))
    model.set_active_adapters(None)
    loss.backward()
    expected = training(name, "seq_bn", checkpointing=False)
    loss_of(expected, inputs(name)).backward()
    assert_same(gradients(expected), gradients(model))


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_dropout_is_the_same_when_layers_run_again(name: str) -> None:
    changes = {"t5": {"dropout_rate": 0.3}, "bert": {"hidden_dropout_prob": 0.3}}.get(name, {"attention_dropout": 0.3})
    results = []
    for checkpointing in (False, True):
        model = training(name, "lora", checkpointing=checkpointing, **changes)
        torch.manual_seed(3)
        loss_of(model, inputs(name)).backward()
        results.append(gradients(model))
    assert_same(*results)


@pytest.mark.versions
@every_pair(names=("bert",))
def test_the_reentrant_kind(method: str, name: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = training(name, method, method, checkpointing=checkpointing, reentrant=True)
        with AdapterSetup(Parallel("b", "a")):
            loss = loss_of(model, inputs(name))
        loss.backward()
        results.append(gradients(model))
    assert_same(*results)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_a_copy_runs_its_own_layers_again(name: str) -> None:
    model = training(name, "seq_bn", "loreft", checkpointing=True)
    twin = copy.deepcopy(model)
    with AdapterSetup("b"):
        loss = loss_of(twin, inputs(name))
    model.delete_adapter("a")
    model.delete_adapter("b")
    loss.backward()
    expected = training(name, "seq_bn", "loreft", checkpointing=False)
    expected.set_active_adapters("b")
    loss_of(expected, inputs(name)).backward()
    assert_same(gradients(expected), gradients(twin))


def test_disabling_it_again() -> None:
    model = training("bert", "seq_bn", checkpointing=True)
    checkpoint(model, enable=False)
    loss_of(model, inputs("bert")).backward()
    expected = training("bert", "seq_bn", checkpointing=False)
    loss_of(expected, inputs("bert")).backward()
    assert_same(gradients(expected), gradients(model))


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_scores_are_those_of_the_forward_call(name: str) -> None:
    plain, checked = (training(name, "unipelt", checkpointing=c) for c in (False, True))
    given = inputs(name)
    one, two = (m(**given, use_cache=False, output_adapter_gating_scores=True) for m in (plain, checked))
    loss = two.last_hidden_state.sum()
    before = str(two.adapter_gating_scores)
    loss.backward()
    assert str(two.adapter_gating_scores) == before == str(one.adapter_gating_scores)


def test_an_error_while_layers_run_again_leaves_nothing() -> None:
    model = training("bert", "seq_bn", "lora", checkpointing=True)
    expected = model(**inputs("bert")).last_hidden_state
    with AdapterSetup("b"):
        loss = loss_of(model, inputs("bert"))
    layer = model.encoder.layer[1].intermediate
    forward, layer.forward = layer.forward, lambda *args: 1 / 0
    with contextlib.suppress(ZeroDivisionError):
        loss.backward()
    layer.forward = forward
    torch.testing.assert_close(model(**inputs("bert")).last_hidden_state, expected)
