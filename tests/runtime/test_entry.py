"""A call opens where it enters the model and is closed however it ends; what it asked for is its own."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from adapters.call import CALL
from adapters.runtime.entry import _argument
from tests.contract.cases import carrying
from tests.tiny import infer, inputs, perturb


def active(name: str, method: str, task: str = "base") -> Any:
    """A tiny model whose adapter "a" does something, and is active; "b" is of the same method."""
    model = carrying(name, method, method, task=task)
    perturb(model, "a", seed=1)
    perturb(model, "b", seed=2)
    model.set_active_adapters("a")
    return model


def layer_of(model: Any) -> Any:
    return model.base_model.encoder.layer[0]


@pytest.mark.parametrize("task", ["base", "classification"])
def test_a_call_is_open_while_it_runs_and_no_longer(task: str) -> None:
    model, outside, seen = active("bert", "lora", task), CALL.now, []
    layer_of(model).register_forward_pre_hook(lambda module, args: seen.append((CALL.now.root, CALL.now.program)))
    infer(model, inputs("bert", task))
    ((root, program),) = seen
    assert root is model
    assert str(program.setup) == "Stack[a]"
    assert CALL.now is outside
    assert not +model._engine.programs.running


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_call_that_fails_is_closed(error: type[BaseException]) -> None:
    model, outside, given = active("bert", "lora"), CALL.now, inputs("bert")
    expected = infer(model, given)

    def fail(module: nn.Module, args: Any) -> None:
        raise error

    handle = layer_of(model).register_forward_pre_hook(fail)
    with pytest.raises(error):
        infer(model, given)
    handle.remove()
    assert CALL.now is outside
    assert not +model._engine.programs.running
    assert torch.equal(infer(model, given), expected)


def test_calls_of_two_models_nest() -> None:
    outer, inner = active("bert", "lora"), active("gpt2", "prefix_tuning")
    expected = infer(outer, inputs("bert")), infer(inner, inputs("gpt2"))
    seen: list[Any] = []
    layer_of(outer).register_forward_pre_hook(lambda module, args: seen.append(infer(inner, inputs("gpt2"))))
    assert torch.equal(infer(outer, inputs("bert")), expected[0])
    assert torch.equal(*seen, expected[1])


def test_stacks_are_followed_while_an_adapter_needs_their_masks() -> None:
    model = carrying("t5", "lora", "loreft_ends")
    model.set_active_adapters("a")
    assert set(model._engine.entry.stacks) == {id(model.encoder), id(model.decoder)}
    model.delete_adapter("b")
    assert not model._engine.entry.stacks


def test_what_is_carried_runs_under_the_set_up_of_its_forward() -> None:
    model = active("bert", "lora")
    entry, carried = model._engine.entry, []

    def layer() -> Any:
        return CALL.now.program, CALL.now.replaying

    assert entry.carry(layer) is layer
    layer_of(model).register_forward_pre_hook(lambda module, args: carried.append((entry.carry(layer), layer()[0])))
    infer(model, inputs("bert"))
    ((run, program),) = carried
    model.set_active_adapters("b")
    outside, found = CALL.now, []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join()
    assert run() == found[0] == (program, True)
    assert CALL.now is outside and str(program.setup) == "Stack[a]"
    assert not +model._engine.programs.running


def test_what_is_carried_and_fails_leaves_no_call_open() -> None:
    model, carried = active("bert", "lora"), []

    def fail() -> None:
        raise ZeroDivisionError

    layer_of(model).register_forward_pre_hook(lambda module, args: carried.append(model._engine.entry.carry(fail)))
    infer(model, inputs("bert"))
    outside = CALL.now
    with pytest.raises(ZeroDivisionError):
        carried[0]()
    assert CALL.now is outside and not +model._engine.programs.running


class Takes(nn.Module):
    def forward(self, states: Any, mask: Any = None, other: Any = None) -> Any:
        return states, mask, other


@pytest.mark.parametrize(
    ("args", "kwargs", "value", "left", "named"),
    [
        ((1,), {}, None, (1,), {}),
        ((1,), {"mask": 2}, 2, (1,), {"mask": 2}),
        ((1, 2), {}, 2, (1,), {"mask": 2}),
        ((1, 2, 3), {}, 2, (1,), {"mask": 2, "other": 3}),
        ((1, 2), {"other": 3}, 2, (1,), {"mask": 2, "other": 3}),
        ((), {"states": 1}, None, (), {"states": 1}),
    ],
)
def test_an_argument_is_found_wherever_it_is_given(args: Any, kwargs: Any, value: Any, left: Any, named: Any) -> None:
    assert _argument(Takes(), "mask", args, kwargs) == (value, left, named)
    assert _argument(Takes(), "absent", args, kwargs) == (None, args, kwargs)
