"""Do the heads train that train_adapter names, and no others?"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from adapters.composition.blocks import BatchSplit, Fuse, MultiTask, Parallel, Route, Stack
from adapters.heads.output_embeddings import head_names
from tests.heads.models import PAIRS, add_head, inputs_for, labels_for, tiny

SETUPS = ("a", Stack("c", "b"), Parallel("a", "b"), BatchSplit("a", "b", batch_sizes=1), MultiTask("a", "b"), "c")


def training(model: Any) -> set[str]:
    """Names of the heads that have a trained parameter."""
    return {key.split(".")[1] for key, p in model.named_parameters() if key.startswith("heads.") and p.requires_grad}


def adapted(model_type: str = "bert", head_type: str = "classification", names: str = "abd") -> Any:
    model = tiny(model_type)
    for name in names:
        add_head(model, head_type, name)
    for name in "abc":
        model.add_adapter(name, config="lora")
    return model


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_heads_of_the_set_up_train(setup: Any) -> None:
    model = adapted()
    assert training(model) == {"a", "b", "d"}
    model.train_adapter(setup)
    assert training(model) == set(head_names(model.active_head))
    assert training(model) == (
        {"d"}
        if setup == "c"
        else {"b"}
        if isinstance(setup, Stack)
        else {"a", "b"} - ({"b"} if setup == "a" else set())
    )
    model.train_adapter("b")
    assert training(model) == {"b"}


@pytest.mark.parametrize("setup", [Fuse("a", "c"), Stack(Fuse("a", "c"))], ids=str)
def test_heads_of_a_fusion_train(setup: Any) -> None:
    model = tiny("bert")
    for name in "ac":
        model.add_adapter(name, config="seq_bn")
        add_head(model, "classification", name)
    add_head(model, "tagging", "task")
    model.add_adapter_fusion(Fuse("a", "c"))
    model.train_adapter_fusion(setup)
    assert training(model) == {"task"} == {model.active_head}


def test_heads_of_a_routing_train() -> None:
    model = tiny("bert")
    for name in "ac":
        model.add_adapter(name, config="seq_bn")
        add_head(model, "classification", name)
    add_head(model, "tagging", "task")
    model.add_adapter_routing(Route("a", "c"))
    model.train_adapter_routing(Stack(Route("a", "c")))
    assert training(model) == {"task"} == {model.active_head}


def test_heads_that_come_later_are_frozen(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = adapted()
    model.save_head(str(tmp_path / "a"), "a")
    model.train_adapter("a")
    with caplog.at_level(logging.WARNING):
        add_head(model, "tagging", "added")
    assert "'added' is frozen" in caplog.text
    model.load_head(str(tmp_path / "a"), load_as="loaded")
    model.average_head("mean", ["a", "b"])
    model.add_prediction_head_from_config("restored", model.heads["a"].config)
    assert training(model) == {"a"}
    model.add_adapter("added", config="lora")
    model.train_adapter("added")
    assert training(model) == {"added"} == {model.active_head}


def test_trained_embeddings_stay_those_of_the_base_model() -> None:
    """A tied head must not unfreeze them."""
    model = adapted(head_type="masked_lm", names="ab")
    embeddings, outputs = model.get_input_embeddings().weight, [model.heads[name][3] for name in "ab"]
    assert all(layer.weight is embeddings for layer in outputs)
    model.train_adapter("a")
    assert not embeddings.requires_grad
    assert training(model) == {"a"}
    model.train_adapter("a", train_embeddings=True)
    assert embeddings.requires_grad
    assert [layer.bias.requires_grad for layer in outputs] == [True, False]
    model.train_adapter("a")
    assert not embeddings.requires_grad and not outputs[0].bias.requires_grad


@pytest.mark.parametrize(("model_type", "head_type"), PAIRS)
def test_every_trained_tensor_has_a_gradient(model_type: str, head_type: str) -> None:
    """Which is what distributed training needs."""
    model = adapted(model_type, head_type, "ab")
    model.train_adapter("a")
    model.zero_grad()
    model(**inputs_for(model, head_type), **labels_for(head_type)).loss.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained and not [name for name, p in trained.items() if p.grad is None]
    assert not [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None]
    assert all(torch.isfinite(p.grad).all() for p in trained.values())
