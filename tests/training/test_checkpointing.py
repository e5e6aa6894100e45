"""Does gradient checkpointing give the gradients of the forward call, whatever happens before the backward call?"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import adapters
from adapters import AdapterSetup, Average, Fuse
from tests.contract.cases import CONFIGS
from tests.tiny import build, perturb
from tests.training.toy import any_examples, trained

REENTRANT = pytest.mark.parametrize("reentrant", [False, True])
METHODS = ("seq_bn", "lora", "dora", "compacter", "prefix_tuning", "unipelt", "loreft")


def checkpoint(model: Any, **kwargs: Any) -> None:
    """Turn checkpointing on, by its name in this version of transformers."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(kwargs or None)
    else:
        model.gradient_checkpointing_enable(kwargs or None)


def batch_of(name: str) -> dict[str, Tensor]:
    rows = any_examples(name, 4)
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def loss_of(model: Any, name: str) -> Tensor:
    loss: Tensor = model(**batch_of(name)).loss
    return loss


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def compare(make: Callable[[], Any], step: Callable[[Any], None], **kwargs: Any) -> None:
    """Check that `step` gives a model the same gradients with and without checkpointing."""
    plain, checked = make().train(), make().train()
    checkpoint(checked, **kwargs)
    step(plain)
    step(checked)
    expected, found = gradients(plain), gradients(checked)
    assert expected
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6, rtol=1e-4), name


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "bart", "vit"])
@pytest.mark.parametrize("method", METHODS)
@REENTRANT
def test_gradients_agree(reentrant: bool, method: str, name: str) -> None:
    def make() -> Any:
        model = trained(name, CONFIGS[method], use_cache=False)
        perturb(model, "a")
        return model

    compare(make, lambda model: loss_of(model, name).backward(), use_reentrant=reentrant)


def two(method: str = "seq_bn", **changes: Any) -> Any:
    """A small Llama with two trained adapters, of which "a" is active."""
    model = build("llama", "lm", use_cache=False, **changes)
    torch.manual_seed(0)
    for name in "ab":
        model.add_adapter(name, config=CONFIGS[method])
    perturb(model, "a", "b")
    model.train_adapter(Average("a", "b"))
    model.set_active_adapters("a")
    return model


@pytest.mark.parametrize("method", ["seq_bn", "lora", "prefix_tuning", "loreft"])
@REENTRANT
def test_a_context_that_was_left(reentrant: bool, method: str) -> None:
    def step(model: Any) -> None:
        with AdapterSetup("b"):
            loss = loss_of(model, "llama")
        loss.backward()

    compare(lambda: two(method), step, use_reentrant=reentrant)


@REENTRANT
def test_a_context_that_was_entered(reentrant: bool) -> None:
    def step(model: Any) -> None:
        loss = loss_of(model, "llama")
        with AdapterSetup("b"):
            loss.backward()

    compare(two, step, use_reentrant=reentrant)


@pytest.mark.parametrize("setup", ["b", None])
@REENTRANT
def test_another_active_set_up(reentrant: bool, setup: str | None) -> None:
    def step(model: Any) -> None:
        loss = loss_of(model, "llama")
        model.set_active_adapters(setup)
        loss.backward()

    compare(two, step, use_reentrant=reentrant)


def test_skipped_layers_stay_skipped() -> None:
    def step(model: Any) -> None:
        with AdapterSetup("a"):
            model(**batch_of("llama"))
        model.set_active_adapters("a", skip_layers=[0])
        loss = loss_of(model, "llama")
        model.set_active_adapters("a")
        loss.backward()

    compare(two, step)


def test_backward_on_another_thread() -> None:
    def step(model: Any) -> None:
        with AdapterSetup("b"):
            loss = loss_of(model, "llama")
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()

    compare(two, step)


def test_the_temperature_of_a_fusion() -> None:
    def make() -> Any:
        model = trained(method="seq_bn")
        model.add_adapter("b", config="seq_bn")
        perturb(model, "a", "b")
        model.add_adapter_fusion(Fuse("a", "b"), config=adapters.DynamicAdapterFusionConfig(temperature=True))
        model.train_adapter_fusion(Fuse("a", "b"))
        for part in model._engine.owned["fusion"]["a,b"]:
            part.module.temperature = 1.5
        return model

    def step(model: Any) -> None:
        for _ in range(2):
            loss_of(model, "bert").backward()

    compare(make, step)


def test_checkpointing_that_was_on_before_init() -> None:
    def make(early: bool) -> Any:
        model = build("llama", "lm", adapted=False, use_cache=False)
        if early:
            checkpoint(model)
        adapters.init(model)
        torch.manual_seed(0)
        model.add_adapter("a", config="lora")
        perturb(model, "a")
        model.train_adapter("a")
        model.set_active_adapters(None)
        return model.train()

    plain, checked = make(False), make(True)
    for model in (plain, checked):
        with AdapterSetup("a"):
            loss = loss_of(model, "llama")
        loss.backward()
    expected, found = gradients(plain), gradients(checked)
    assert expected and expected.keys() == found.keys()
    assert all(torch.allclose(expected[name], found[name], atol=1e-6) for name in expected)
    assert not embeddings_have_gradients(checked)


# --------------------------------------------------------------------------------------------- embedding gradients


def embeddings_have_gradients(model: Any) -> bool:
    seen: list[bool] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda *call: seen.append(call[2].requires_grad))
    loss_of(model, model.config.model_type)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("kwargs", [{}, {"use_reentrant": False}, {"use_reentrant": True}])
def test_embeddings_have_gradients_only_where_needed(kwargs: dict[str, Any]) -> None:
    model = trained("bert")
    checkpoint(model, **kwargs)
    assert embeddings_have_gradients(model) == kwargs.get("use_reentrant", False)


def test_embedding_gradients_can_be_asked_for() -> None:
    model = trained("bert")
    model.enable_input_require_grads()
    assert embeddings_have_gradients(model)
    checkpoint(model)
    assert embeddings_have_gradients(model)
    model.disable_input_require_grads()
    assert not embeddings_have_gradients(model)


def test_enabling_twice_hooks_once() -> None:
    model = trained("bert")
    before = len(model.get_input_embeddings()._forward_hooks)
    for _ in range(2):
        checkpoint(model, use_reentrant=True)
    assert len(model.get_input_embeddings()._forward_hooks) == before + 1
