"""Adapters of one model do not touch each other, and every thread has its own `AdapterSetup`."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import AdapterSetup, BatchSplit, Parallel, Stack
from adapters.errors import AdapterNameError
from tests.contract.cases import CONFIGS, ONE_OF_EACH, REPRESENTATIVE, carrying, every_pair
from tests.tiny import TINY_MODELS, adapter_parameters, build, infer, inputs, perturb


def alone(model: Any, given: Any, setup: Any) -> Tensor:
    model.set_active_adapters(setup)
    return infer(model, given)


@every_pair(names=REPRESENTATIVE)
def test_two_adapters_of_one_method(method: str, name: str) -> None:
    model, given = carrying(name, method, method), inputs(name)
    perturb(model, "a")
    perturb(model, "b", seed=1)
    of_a, of_b, of_none = (alone(model, given, setup) for setup in ("a", "b", None))
    assert not torch.allclose(of_a, of_b)
    single = carrying(name, method)
    perturb(single, "a")
    assert torch.equal(alone(single, given, "a"), of_a)

    values = {key: p.detach().clone() for key, p in adapter_parameters(model, "b").items()}
    perturb(model, "a", seed=2)
    changed = alone(model, given, "a")
    assert not torch.equal(changed, of_a)
    assert torch.equal(alone(model, given, "b"), of_b)
    assert torch.equal(alone(model, given, None), of_none)
    model.delete_adapter("b")
    assert torch.equal(alone(model, given, "a"), changed)
    assert len(adapter_parameters(model, "a")) == len(values)


@pytest.mark.parametrize("first", CONFIGS)
def test_an_adapter_of_another_method(first: str) -> None:
    model, given = carrying("bert", first, "unipelt", "loreft"), inputs("bert")
    perturb(model, "a", "b", "c")
    single = carrying("bert", first)
    perturb(single, "a")
    assert torch.equal(alone(model, given, "a"), alone(single, given, "a"))


@every_pair(names=("bert", "t5"))
def test_contexts_nest_and_restore(method: str, name: str) -> None:
    model, given = carrying(name, method, method), inputs(name)
    perturb(model, "a")
    perturb(model, "b", seed=1)
    of_a, of_b, of_none = (alone(model, given, setup) for setup in ("a", "b", None))
    model.set_active_adapters("a")
    with AdapterSetup("b"):
        assert torch.equal(infer(model, given), of_b)
        with AdapterSetup(None):
            assert torch.equal(infer(model, given), of_none)
            with AdapterSetup("a"):
                assert torch.equal(infer(model, given), of_a)
        with AdapterSetup(None, ignore_empty=True):
            assert torch.equal(infer(model, given), of_b)
        assert torch.equal(infer(model, given), of_b)
    assert torch.equal(infer(model, given), of_a)
    model.set_active_adapters(None)
    with AdapterSetup("b"):
        assert torch.equal(infer(model, given), of_b)
    assert torch.equal(infer(model, given), of_none)


def test_a_context_that_is_left_by_an_error_is_left() -> None:
    model, given = carrying("bert", "seq_bn", "lora"), inputs("bert")
    perturb(model, "a", "b")
    expected = alone(model, given, "a")
    with pytest.raises(RuntimeError, match="stop"), AdapterSetup("b"):
        raise RuntimeError("stop")
    assert AdapterSetup.get_context() is None and AdapterSetup.get_contexts() == []
    assert torch.equal(infer(model, given), expected)


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_a_call_that_fails_leaves_the_model_usable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = carrying(name, "unipelt", "seq_bn_inv", "loreft"), inputs(name)
    perturb(model, "a", "b", "c")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("stop")

    for setup in ("a", "b", "c", Stack("a", "b"), Parallel("a", "b")):
        expected = alone(model, given, setup)
        for module in [m for m in model.modules() if isinstance(m, torch.nn.Linear)][2:40:5]:
            with monkeypatch.context() as patch:
                patch.setattr(module, "forward", fail)
                with contextlib.suppress(RuntimeError):
                    infer(model, given, output_adapter_gating_scores=True)
            result = infer(model, given)
            assert torch.equal(result, expected)
            assert "adapter_gating_scores" not in model(**given)


@pytest.mark.parametrize("change", ["add", "delete", "activate"])
def test_the_model_changes_inside_a_context(change: str) -> None:
    model, given = carrying("bert", "seq_bn", "seq_bn"), inputs("bert")
    perturb(model, "a")
    perturb(model, "b", seed=1)
    of_a, of_b = (alone(model, given, setup) for setup in ("a", "b"))
    with AdapterSetup("b"):
        if change == "add":
            model.add_adapter("c", config="seq_bn", set_active=True)
        elif change == "delete":
            model.delete_adapter("a")
        else:
            model.set_active_adapters("a")
        assert torch.equal(infer(model, given), of_b)
    if change == "activate":
        assert torch.equal(infer(model, given), of_a)
    if change == "delete":
        assert torch.equal(infer(model, given), of_b)


def test_a_context_may_name_an_adapter_that_comes_later() -> None:
    model, given = build("bert"), inputs("bert")
    expected = infer(model, given)
    with AdapterSetup("late"):
        with pytest.raises(AdapterNameError, match="late"):
            model(**given)
        model.add_adapter("late", config="seq_bn")
        perturb(model, "late")
        changed = infer(model, given)
    assert not torch.allclose(changed, expected)
    assert torch.equal(infer(model, given), expected)


def test_a_context_holds_for_every_model_that_has_the_names() -> None:
    one, two = carrying("bert", "seq_bn"), carrying("gpt2", "lora")
    perturb(one, "a")
    perturb(two, "a")
    models = [(one, inputs("bert")), (two, inputs("gpt2"))]
    expected = [alone(model, given, "a") for model, given in models]
    for model, _ in models:
        model.set_active_adapters(None)
    with AdapterSetup("a"):
        found = [infer(model, given) for model, given in models]
    assert all(map(torch.equal, found, expected))


def test_contexts_tell_what_is_in_force() -> None:
    assert AdapterSetup.get_context() is None and AdapterSetup.get_context_adapter_setup() is None
    with AdapterSetup(Stack("a", "b")) as outer:
        assert AdapterSetup.get_context() is outer
        assert AdapterSetup.get_context_head_setup() == "b"
        with AdapterSetup("c", head_setup="h") as inner:
            assert AdapterSetup.get_contexts() == [outer, inner]
            assert AdapterSetup.get_context_adapter_setup() == Stack("c")
            assert AdapterSetup.get_context_head_setup() == "h"
        assert AdapterSetup.get_context_adapter_setup() == Stack("a", "b")
    assert AdapterSetup.get_contexts() == []


@every_pair(methods=ONE_OF_EACH, names=("bert",))
def test_threads_do_not_see_each_others_context(method: str, name: str) -> None:
    model, given = carrying(name, method, method), inputs(name)
    perturb(model, "a")
    perturb(model, "b", seed=1)
    setups = ["a", "b", None, Parallel("a", "b"), BatchSplit("a", "b", batch_sizes=[1, 3])]
    expected = [alone(model, given, setup) for setup in setups]
    model.set_active_adapters("b")
    barrier = threading.Barrier(len(setups), timeout=20)

    def work(setup: Any) -> list[Tensor]:
        with AdapterSetup(setup):
            barrier.wait()
            return [infer(model, given) for _ in range(4)]

    with ThreadPoolExecutor(len(setups)) as pool:
        found = list(pool.map(work, setups))
    for results, result in zip(found, expected):
        assert all(torch.equal(one, result) for one in results)
    assert torch.equal(infer(model, given), expected[1])


def test_a_new_thread_sees_the_models_own_setup() -> None:
    model, given = carrying("bert", "seq_bn", "lora"), inputs("bert")
    perturb(model, "a", "b")
    expected = alone(model, given, "a")
    with AdapterSetup("b"), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(infer, model, given).result(), expected)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_many_adapters(name: str) -> None:
    model, given = build(name), inputs(name)
    names = [f"adapter {i}" for i in range(12)]
    for i, adapter in enumerate(names):
        model.add_adapter(adapter, config="lora[r=2]" if i % 2 else "seq_bn[reduction_factor=8]")
        perturb(model, adapter, seed=i)
    results = [alone(model, given, adapter) for adapter in names]
    assert len({float(result.sum()) for result in results}) == len(names)
    for adapter in names[::3]:
        model.delete_adapter(adapter)
    for i, adapter in enumerate(names):
        if i % 3:
            assert torch.equal(alone(model, given, adapter), results[i])


@pytest.mark.parametrize("adapter", ["train", "type", "forward", "0", "weight", "keys", "ünïcödé", "a b/c", "default"])
def test_any_name_without_dots_and_commas_will_do(adapter: str) -> None:
    model, given = build("bert"), inputs("bert")
    plain = infer(model, given)
    model.add_adapter(adapter, config="unipelt[prefix_length=3,bottleneck_size=8]", set_active=True)
    perturb(model, adapter)
    assert not torch.allclose(infer(model, given), plain)
    model.train_adapter(adapter)
    model.eval().delete_adapter(adapter)
    assert torch.equal(infer(model, given), plain)
