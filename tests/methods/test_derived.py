"""Are constants of the forward calls computed once, and anew as soon as anything changes from which they follow?"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import AdapterSetup
from adapters.methods.derived import Derived, refresh
from tests.contract.cases import CONFIGS
from tests.tiny import build, infer, inputs, output, perturb

METHODS = ("dora", "dvora", "vera", "compacter", "loreft", "prefix_tuning", "mtl_lora")


def adapted(method: str, name: str = "a") -> Any:
    model = build("bert")
    model.add_adapter(name, config=CONFIGS[method])
    perturb(model, name)
    model.set_active_adapters(name)
    return model.eval()


def derived_of(model: nn.Module) -> list[Derived]:
    return [v for m in model.modules() for v in vars(m).values() if isinstance(v, Derived)]


def write(parameter: nn.Parameter) -> None:
    with torch.no_grad():
        parameter.mul_(1.5)


def assign(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data * 1.5


def write_data(parameter: nn.Parameter) -> None:
    parameter.data.mul_(1.5)


def copy_data(parameter: nn.Parameter) -> None:
    parameter.data.copy_(parameter.data + 0.1)


CHANGES: dict[str, Callable[[nn.Parameter], None]] = {
    "written to": write,
    "given other data": assign,
    "scaled through .data": write_data,
    "overwritten through .data": copy_data,
}


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_computed_twice_while_nothing_changes(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = adapted(method), inputs("bert")
    expected = [infer(model, given) for _ in range(3)][-1]
    derived = derived_of(model)
    assert derived
    for each in derived:
        monkeypatch.setattr(each, "compute", None)
    assert torch.equal(infer(model, given), expected)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", METHODS)
def test_every_change_of_a_parameter_counts(method: str, change: str) -> None:
    model, given = adapted(method), inputs("bert")
    names = [name for name, p in model.named_parameters() if ".a." in name and p.numel()]
    for name in names:
        for _ in range(3):
            infer(model, given)
        CHANGES[change](model.get_parameter(name))
        fresh = adapted(method)
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(infer(model, given), infer(fresh, given)), name


def test_a_parameter_may_be_replaced_by_another() -> None:
    model, given = adapted("dora"), inputs("bert")
    for _ in range(3):
        infer(model, given)
    module = next(m for m in model.modules() if type(m).__name__ == "DoRA")
    module.lora_B = nn.Parameter(torch.ones_like(module.lora_B))
    fresh = adapted("dora")
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(infer(model, given), infer(fresh, given))


def test_what_is_first_used_later_is_watched_too() -> None:
    model, given = adapted("dora"), inputs("bert")
    model.add_adapter("b", config=CONFIGS["loreft"])
    with AdapterSetup("b"):
        for _ in range(3):
            infer(model, given)
    for _ in range(3):
        infer(model, given)
    for name, parameter in model.named_parameters():
        if ".b." in name:
            write(parameter)
    fresh = adapted("dora")
    fresh.add_adapter("b", config=CONFIGS["loreft"])
    fresh.load_state_dict(model.state_dict())
    for setup in ("b", "a"):
        with AdapterSetup(setup):
            assert torch.equal(infer(model, given), infer(fresh.eval(), given))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_goes_its_own_way(copied: Callable[[Any], Any]) -> None:
    model, given = adapted("dora"), inputs("bert")
    expected = [infer(model, given) for _ in range(3)][-1]
    other = copied(model)
    assert torch.equal(infer(other, given), expected)
    for name, parameter in other.named_parameters():
        if ".a." in name:
            write(parameter)
    for _ in range(3):
        assert not torch.equal(infer(other, given), expected)
        assert torch.equal(infer(model, given), expected)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_a_model_that_never_kept_anything(method: str) -> None:
    model, given = adapted(method), inputs("bert")
    fresh = copy.deepcopy(model)
    for _ in range(3):
        infer(model, given)
    grads = []
    for each in (model, fresh):
        each.train_adapter("a")
        each.eval()
        output(each, given).square().sum().backward()
        grads.append({n: p.grad for n, p in each.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and grads[0]
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


def test_what_inference_mode_kept_can_be_trained_through() -> None:
    """Frozen adapters, and something trained below them, after a first call in inference mode."""
    model, given = adapted("dora"), inputs("bert")
    with torch.inference_mode():
        for _ in range(3):
            model(**given)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings.word" in name)
    output(model, given).sum().backward()
    grad: Tensor | None = model.get_input_embeddings().weight.grad
    assert grad is not None and grad.abs().sum() > 0


def averaged(model: nn.Module) -> None:
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    average.update_parameters(copy.deepcopy(model))
    for mine, theirs in zip(model.parameters(), average.parameters()):
        mine.data.copy_(1.5 * theirs.data)


def from_vector(model: nn.Module) -> None:
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(1.1 * vector.detach(), model.parameters())


def loaded(model: nn.Module) -> None:
    model.load_state_dict({name: 1.1 * tensor for name, tensor in model.state_dict().items()})


def stepped(model: nn.Module) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    for fused in (False, True) if parameters else ():
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.1)
        torch.optim.SGD(parameters, lr=0.1, fused=fused).step()
        for parameter in parameters:
            parameter.grad = None


def shaken(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.ones_like(parameter))


WAYS: tuple[Callable[[nn.Module], None], ...] = (averaged, from_vector, loaded, stepped, shaken)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_write_weights_is_noticed(method: str, way: Callable[[nn.Module], None]) -> None:
    model, given = adapted(method), inputs("bert")
    before = [infer(model, given) for _ in range(3)][-1]
    part = next(m for m in model.modules() if getattr(m, "name", None) == "a" and getattr(m, "site", None) is not None)
    for module in (part, part.common):
        if module is not None and any(True for _ in module.parameters()):
            way(module)
    fresh = adapted(method)
    fresh.load_state_dict(model.state_dict())
    after = infer(model, given)
    assert torch.equal(after, infer(fresh, given))
    assert not torch.equal(after, before)


def test_single_numbers_written_without_a_trace_need_a_refresh() -> None:
    model, given = adapted("dora"), inputs("bert")
    before = [infer(model, given) for _ in range(3)][-1]
    module = next(m for m in model.modules() if type(m).__name__ == "DoRA")
    module.lora_B.data[1, 1] += 3.0
    refresh()
    fresh = adapted("dora")
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(infer(model, given), infer(fresh, given))
    assert not torch.equal(infer(model, given), before)
