"""`torch.compile(fullgraph=True)`: adapters of equal shape share one graph, and set-ups give the right results."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from adapters import AdapterSetup, Average, BatchSplit, Fuse, Parallel, Route, Stack
from adapters.call import CALL
from adapters.composition.blocks import GATES
from adapters.errors import AdapterNameError
from tests.contract.cases import CONFIGS, ONE_OF_EACH, carrying, every_pair
from tests.tiny import build, inputs, perturb

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No graphs of other tests, before and after."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model: Any) -> Any:
    return torch.compile(model, fullgraph=True, backend="eager")


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def hidden(model: Any, given: Any) -> Tensor:
    with torch.no_grad():
        return model(**given).last_hidden_state  # type: ignore[no-any-return]


@every_pair(names=("bert", "llama"), where=lambda method, name: name == "bert" or method in ONE_OF_EACH)
def test_switched_adapters_share_one_graph(method: str, name: str) -> None:
    model, given = build(name, num_hidden_layers=1), inputs(name)
    names = [f"adapter{i}" for i in range(12)]
    for i, adapter in enumerate(names):
        model.add_adapter(adapter, config=CONFIGS[method])
        perturb(model, adapter, seed=i)
    fast = compiled(model)
    for adapter in names:
        model.set_active_adapters(adapter)
        torch.testing.assert_close(hidden(fast, given), hidden(model, given), **CLOSE)
    assert graphs() == 1


@every_pair(methods=("double_seq_bn", "lora", "prefix_tuning"), names=("gpt2", "t5", "vit"))
def test_other_architectures(method: str, name: str) -> None:
    model, given = carrying(name, method, method), inputs(name)
    perturb(model, "a")
    perturb(model, "b", seed=1)
    fast = compiled(model)
    for adapter in "ab":
        model.set_active_adapters(adapter)
        torch.testing.assert_close(hidden(fast, given), hidden(model, given), **CLOSE)
    assert graphs() == 1


@every_pair(methods=("seq_bn", "lora", "prefix_tuning", "loreft"), names=("bert",))
def test_contexts(method: str, name: str) -> None:
    model, given = carrying(name, method, method), inputs(name)
    perturb(model, "a")
    perturb(model, "b", seed=1)
    fast = compiled(model)
    for setup in ("a", None, "b", "a"):
        with AdapterSetup(setup):
            torch.testing.assert_close(hidden(fast, given), hidden(model, given), **CLOSE)
    model.set_active_adapters("b")
    torch.testing.assert_close(hidden(fast, given), hidden(model, given), **CLOSE)


@pytest.mark.parametrize(
    "setup",
    [
        Stack("a", "b"),
        Parallel("a", "b"),
        BatchSplit("a", "b", batch_sizes=[1, 3]),
        BatchSplit("a", None, batch_sizes=[1, 3]),
        Average("a", "b", weights=[1, 3]),
        Parallel(Stack("a", "b"), "b"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["seq_bn", "lora", "prefix_tuning"])
def test_blocks(setup: Any, method: str) -> None:
    model, given = carrying("bert", method, method), inputs("bert")
    perturb(model, "a")
    perturb(model, "b", seed=1)
    model.set_active_adapters(setup)
    fast, expected = compiled(model), hidden(model, given)
    for _ in range(2):
        torch.testing.assert_close(hidden(fast, given), expected, **CLOSE)
    assert graphs() == 1


@pytest.mark.parametrize("method", ["seq_bn", "loreft_ends"])
@pytest.mark.parametrize("task", ["base", "classification"])
def test_parallel_of_upper_layers_and_with_a_head(method: str, task: str) -> None:
    """What one hook notes must reach the next: writes of compiled code to thread-local objects get lost."""
    model, given = build("bert", task), inputs("bert")
    for i, adapter in enumerate("ab"):
        config = CONFIGS[method]
        config = config.replace(layers=[1]) if "layers" in config else config.replace(leave_out=[0])
        model.add_adapter(adapter, config=config)
        perturb(model, adapter, seed=i)
    model.set_active_adapters(Parallel("a", "b"))
    fast = compiled(model)
    for _ in range(2):
        with torch.no_grad():
            found, expected = (m(**given)[0] for m in (fast, model))
        torch.testing.assert_close(found, expected, **CLOSE)
    assert vars(CALL.now)["root"] is None and not CALL.now.stacks and not CALL.now.replicated


def test_fusion() -> None:
    model, given = carrying("bert", "seq_bn", "seq_bn"), inputs("bert")
    perturb(model, "a")
    perturb(model, "b", seed=1)
    model.add_adapter_fusion(["a", "b"])
    model.set_active_adapters(Fuse("a", "b"))
    torch.testing.assert_close(hidden(compiled(model), given), hidden(model, given), **CLOSE)


@pytest.mark.parametrize("block", [Fuse("a", "b"), *(Route("a", "b", by=by, top_k=1) for by in GATES)], ids=repr)
def test_blocks_that_mix(block: Any) -> None:
    model, given = carrying("bert", "lora", "lora"), inputs("bert")
    perturb(model, "a")
    perturb(model, "b", seed=1)
    model.add_adapter_fusion(["a", "b"])
    if block.owned_name is not None and isinstance(block, Route):
        model.add_adapter_routing(block)
    model.set_active_adapters(block)
    torch.testing.assert_close(hidden(compiled(model), given), hidden(model, given), **CLOSE)
    assert graphs() == 1


def test_the_balance_loss_of_compiled_calls() -> None:
    found = []
    for wrap in (lambda model: model, compiled):
        model = carrying("bert", "lora", "lora")
        torch.manual_seed(0)
        model.add_adapter_routing(["a", "b"], {"balance": 0.5})
        model.train_adapter_routing(Route("a", "b"))
        run = wrap(model)
        for _ in range(2):
            run(**inputs("bert"))
            loss = model.get_routing_balance_loss()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 1
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, **CLOSE)


@pytest.mark.parametrize("method", ["seq_bn", "dora", "unipelt"])
def test_training(method: str) -> None:
    gradients = []
    for wrap in (lambda model: model, compiled):
        model = carrying("bert", method)
        perturb(model, "a", scale=0.1)
        model.train_adapter("a")
        wrap(model)(**inputs("bert")).last_hidden_state.pow(2).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0] and set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("method", ["prefix_tuning", "dora", "loreft"])
def test_weights_that_change_are_seen(method: str) -> None:
    model, given = carrying("bert", method), inputs("bert")
    perturb(model, "a")
    model.set_active_adapters("a")
    fast = compiled(model)
    first = hidden(fast, given)
    perturb(model, "a", seed=1)
    second = hidden(fast, given)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(second, hidden(model, given), **CLOSE)
    assert graphs() == 1


def test_an_unadapted_model_compiles_as_before() -> None:
    model, given = build("bert"), inputs("bert")
    assert torch.equal(hidden(compiled(model), given), hidden(build("bert", adapted=False), given))
    assert graphs() == 1


@pytest.mark.parametrize("how", ["torch.compile(model)", "model.compile()"])
@pytest.mark.parametrize("added", [False, True])
def test_what_is_activated_after_the_first_compiled_call(added: bool, how: str) -> None:
    """Hooks that were not there then act, and names that the model lacks are errors."""
    model, given = carrying("bert", "lora") if added else build("bert"), inputs("bert")
    model.set_active_adapters(None)
    if how == "model.compile()":
        model.compile(backend="eager")
        fast = model
    else:
        fast = torch.compile(model, backend="eager")
    plain = hidden(fast, given)
    for _ in range(2):
        with pytest.raises(AdapterNameError, match="typo"), AdapterSetup("typo"):
            fast(**given)
    if not added:
        model.add_adapter("a", config="lora")
    perturb(model, "a")
    eager = copy.deepcopy(model)
    eager._compiled_call_impl = None
    eager.set_active_adapters("a")
    expected = hidden(eager, given)
    assert not torch.allclose(expected, plain, atol=1e-3)
    with AdapterSetup("a"):
        torch.testing.assert_close(hidden(fast, given), expected, **CLOSE)
    torch.testing.assert_close(hidden(fast, given), plain, **CLOSE)
    model.set_active_adapters("a")
    torch.testing.assert_close(hidden(fast, given), expected, **CLOSE)
    with AdapterSetup(None):
        torch.testing.assert_close(hidden(fast, given), plain, **CLOSE)
