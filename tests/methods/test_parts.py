"""What is seen in an adapter is what runs: replaced parts and parameters, hooks, patched forwards, pruning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from adapters import BatchSplit
from adapters.methods.base import AdapterModule, LinearAdapter
from adapters.methods.parts import call, watched
from tests.contract.cases import CONFIGS, ONE_OF_EACH
from tests.tiny import build, infer, inputs, perturb

CALLED = {
    "Bottleneck": ("adapter_down", "adapter_down.0", "adapter_down.1", "adapter_up", "gate"),
    "Compacter": ("adapter_down", "adapter_down.0", "adapter_down.1", "adapter_up"),
    "NICE": ("F", "F.0", "F.1", "F.2", "G"),
    "ReFT": ("units.0", "units.1", "units.0.learned_source", "units.0.projection"),
    "LoRA": ("gate",),
    "MTLLoRA": ("task_specific",),
    "PromptTuning": ("prompt_embedding",),
}
"""Class of a method -> its parts that do some of its maths."""


def adapted(method: str, *names: str) -> Any:
    model = build("bert")
    for i, name in enumerate(names or ("a",)):
        torch.manual_seed(i)
        model.add_adapter(name, config=CONFIGS[method])
        perturb(model, name, seed=i)
    model.set_active_adapters("a")
    return model


def modules(model: Any, name: str = "a") -> list[AdapterModule[Any]]:
    return [m for m in model.modules() if isinstance(m, AdapterModule) and m.name == name]


def calls_of(module: nn.Module) -> list[int]:
    seen: list[int] = []
    module.register_forward_hook(lambda *args: seen.append(1))
    return seen


@pytest.mark.parametrize("method", ONE_OF_EACH)
def test_hooks_on_an_adapter_fire_and_change_nothing(method: str) -> None:
    model, given = adapted(method), inputs("bert")
    expected = [infer(model, given) for _ in range(2)][-1]
    seen = [calls_of(module) for module in modules(model)]
    torch.testing.assert_close(infer(model, given), expected)
    assert all(len(each) == 1 for each in seen)
    infer(model, given)
    assert all(len(each) == 2 for each in seen)


@pytest.mark.parametrize("method", [m for m in ONE_OF_EACH if m not in ("prompt_tuning",)])
def test_hooks_fire_in_blocks_too(method: str) -> None:
    model, given = adapted(method, "a", "b"), inputs("bert")
    model.set_active_adapters(BatchSplit("a", "b", batch_sizes=[2, 2]))
    expected = [infer(model, given) for _ in range(2)][-1]
    seen = [calls_of(module) for name in "ab" for module in modules(model, name)]
    torch.testing.assert_close(infer(model, given), expected, atol=1e-5, rtol=1e-4)
    assert all(seen)


@pytest.mark.parametrize("method", ONE_OF_EACH)
def test_hooks_on_parts_fire(method: str) -> None:
    model, given = adapted(method), inputs("bert")
    expected = [infer(model, given) for _ in range(2)][-1]
    seen = {}
    for module in modules(model):
        for path in CALLED.get(type(module).__name__, ()):
            try:
                part = module.get_submodule(path)
            except AttributeError:
                continue
            seen[f"{type(module).__name__}.{path}"] = calls_of(part)
    torch.testing.assert_close(infer(model, given), expected, atol=1e-5, rtol=1e-4)
    assert all(seen.values()), [key for key, calls in seen.items() if not calls]


def test_hooks_inside_of_shared_prefixes_fire() -> None:
    model, given = adapted("prefix_tuning"), inputs("bert")
    expected = [infer(model, given) for _ in range(2)][-1]
    (embedding,) = [m for m in model.modules() if type(m).__name__ == "PrefixEmbedding"]
    seen = [calls_of(part) for part in (embedding.wte, embedding.control_trans, embedding.control_trans[0])]
    torch.testing.assert_close(infer(model, given), expected, atol=1e-5, rtol=1e-4)
    assert all(len(each) == len(modules(model)) for each in seen)


def test_a_hook_that_returns_something_counts() -> None:
    model, given = adapted("seq_bn"), inputs("bert")
    infer(model, given)
    for module in modules(model):
        module.register_forward_hook(lambda *args: torch.zeros_like(args[2]))
    silent = adapted("seq_bn")
    with torch.no_grad():
        for module in modules(silent):
            module.adapter_up.weight.zero_()
            module.adapter_up.bias.zero_()
    torch.testing.assert_close(infer(model, given), infer(silent, given))


@pytest.mark.parametrize("method", ONE_OF_EACH)
def test_a_patched_forward_runs(method: str) -> None:
    model, given = adapted(method), inputs("bert")
    expected = infer(model, given)
    seen: list[int] = []
    for module in modules(model):
        old = module.forward

        def patched(*args: Any, _old: Any = old, **kwargs: Any) -> Any:
            seen.append(1)
            return _old(*args, **kwargs)

        module.forward = patched  # type: ignore[method-assign]
    torch.testing.assert_close(infer(model, given), expected)
    assert len(seen) >= len(modules(model))


def replace_up(module: Any) -> None:
    module.adapter_up = nn.Linear(module.adapter_up.in_features, 32)


def replace_down(module: Any) -> None:
    module.adapter_down[0] = nn.Linear(32, module.adapter_up.in_features)


def replace_activation(module: Any) -> None:
    module.adapter_down[1] = nn.Sigmoid()


def replace_by_chain(module: Any) -> None:
    width = module.adapter_up.in_features
    module.adapter_up = nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, 32))


def replace_a(module: Any) -> None:
    module.lora_A = nn.Parameter(torch.randn_like(module.lora_A))


def replace_inverse(module: Any) -> None:
    if hasattr(module, "F"):
        module.F[2] = nn.Linear(module.F[2].in_features, module.F[2].out_features)


def replace_unit(module: Any) -> None:
    module.units[0].learned_source = nn.Linear(32, module.units[0].learned_source.out_features)


def zero_by_parametrization(module: Any) -> None:
    class Zero(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return torch.zeros_like(weight)

    parametrize.register_parametrization(module.adapter_up, "weight", Zero())


def prune_up(module: Any) -> None:
    prune.random_unstructured(module.adapter_up, "weight", amount=0.9)


def prune_a(module: Any) -> None:
    prune.random_unstructured(module, "lora_A", amount=0.9)


def normalise(module: Any) -> None:
    nn.utils.parametrizations.weight_norm(module.adapter_down[0])
    with torch.no_grad():
        module.adapter_down[0].parametrizations.weight.original0.mul_(3)


EDITS: list[tuple[str, Callable[[Any], None]]] = [
    ("seq_bn", replace_up),
    ("seq_bn", replace_down),
    ("seq_bn", replace_activation),
    ("seq_bn", replace_by_chain),
    ("par_bn", replace_up),
    ("compacter", replace_up),
    ("seq_bn", zero_by_parametrization),
    ("seq_bn", prune_up),
    ("seq_bn", normalise),
    ("lora", replace_a),
    ("lora", prune_a),
    ("dora", replace_a),
    ("mtl_lora", replace_a),
    ("loreft_ends", replace_unit),
    ("seq_bn_inv", replace_inverse),
]


@pytest.mark.parametrize(("method", "edit"), EDITS, ids=lambda value: getattr(value, "__name__", value))
def test_edits_act_from_the_next_call_on(method: str, edit: Callable[[Any], None]) -> None:
    torch.manual_seed(0)
    model, given = adapted(method), inputs("bert")
    before = [infer(model, given) for _ in range(2)][-1]
    for module in modules(model):
        edit(module)
    after = infer(model, given)
    assert not torch.allclose(after, before, atol=1e-4)
    seen = [calls_of(module) for module in modules(model)]  # the general way, which leaves nothing out
    torch.testing.assert_close(after, infer(model, given), atol=1e-5, rtol=1e-4)
    assert all(seen)


@pytest.mark.parametrize("method", ["lora", "seq_bn", "ia3", "vera"])
def test_edits_act_where_rows_are_run_at_once(method: str) -> None:
    model, given = adapted(method, "a", "b"), inputs("bert")
    rows = {"a": slice(0, 2), "b": slice(2, 4)}
    setup = BatchSplit("a", "b", batch_sizes=[2, 2])
    for edit in (None, calls_of, "replace"):
        for module in modules(model, "b"):
            if edit is calls_of:
                calls_of(module)
            elif edit == "replace" and method == "seq_bn":
                replace_by_chain(module)
            elif edit == "replace" and method in ("lora", "ia3"):
                module.lora_B = nn.Parameter(torch.randn_like(module.lora_B))
        model.set_active_adapters(setup)
        together = infer(model, given)
        for name, own in rows.items():
            model.set_active_adapters(name)
            torch.testing.assert_close(together[own], infer(model, given)[own], atol=1e-5, rtol=1e-4)


def test_calling_is_what_the_module_does() -> None:
    x = torch.randn(2, 3, 4)
    chain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Sequential(nn.Linear(5, 4, bias=False), nn.LayerNorm(4)))
    torch.testing.assert_close(call(chain, x), chain(x))
    assert call(chain.half(), x).dtype is torch.float16
    handle = chain[2].register_forward_pre_hook(lambda *args: None)
    assert watched(chain[2]) and not watched(chain)
    handle.remove()
    assert not watched(chain[2])


class Quantised(nn.Linear):
    """A linear map that returns a view of what autograd holds, as those of 8 bits do."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(weight)
            return (x.reshape(-1, x.shape[-1]) @ weight.t()).view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
            return grads[0] @ ctx.saved_tensors[0], None

    def forward(self, x: Tensor) -> Tensor:
        return self.Function.apply(x, self.weight)[:]  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "vera", "mtl_lora"])
def test_nothing_is_written_into_outputs_of_other_linear_maps(method: str, grad: bool) -> None:
    model = adapted(method)
    module = next(m for m in modules(model) if isinstance(m, LinearAdapter))
    linear: Any = module.site.module
    x, plain = torch.randn(2, 3, 32, requires_grad=grad), linear.weight.detach().clone()
    linear.__class__ = Quantised
    with torch.set_grad_enabled(grad):
        y = Quantised.Function.apply(x, linear.weight)
        kept = y.detach().clone()
        out = module(x, y)
    assert torch.equal(y.detach(), kept)
    assert torch.equal(linear.weight, plain)
    if grad:
        out.sum().backward()
        assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("method", ["lora", "ia3", "seq_bn", "loreft"])
def test_hooks_on_all_modules_of_the_process_see_adapters(method: str) -> None:
    model, given = adapted(method), inputs("bert")
    seen: set[int] = set()
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.add(id(module)))
    try:
        infer(model, given)
    finally:
        handle.remove()
    assert {id(module) for module in modules(model)} <= seen
