"""The engine builds, replaces and deletes adapters at their own sites, and nothing else in the model moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters import Stack
from adapters.errors import AdapterNameError
from adapters.methods.lora import LoRA
from adapters.runtime.parts import Parts
from adapters.runtime.programs import Programs
from tests.contract.cases import CONFIGS, carrying, pairs
from tests.tiny import TINY_MODELS, build, hooks, infer, inputs, owner, perturb

SOME = pairs(methods=("seq_bn_inv", "lora", "vera", "prefix_tuning", "loreft_ends"), names=("bert", "t5", "llama"))


def modules_of(model: Any) -> dict[str, int]:
    """Name -> identity of every module."""
    return {name: id(module) for name, module in model.named_modules()}


@pytest.mark.parametrize(("method", "name"), SOME)
def test_adding_and_deleting_touch_an_adapters_own_modules_only(method: str, name: str) -> None:
    model = build(name)
    bare, keys = modules_of(model), list(model.state_dict())
    model.add_adapter("a", config=CONFIGS[method])
    with_a = modules_of(model)
    model.add_adapter("b", config=CONFIGS[method])
    with_b = modules_of(model)
    assert bare.items() <= with_a.items() <= with_b.items()
    assert all("b" in key.split(".") for key in with_b.keys() - with_a.keys())
    assert {owner(key) for key in model.state_dict()} == {None, "a", "b"}

    model.delete_adapter("b")
    assert modules_of(model) == with_a
    model.delete_adapter("a")
    assert modules_of(model) == bare
    assert list(model.state_dict()) == keys and not hooks(model)
    assert not model._engine.parts and not list(model.adapters_config)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_parts_are_the_modules_in_the_tree(name: str) -> None:
    model = carrying(name, "lora")
    parts = model._engine.parts["a"]
    assert parts
    for part in parts:
        assert model._engine.base.get_submodule(f"{part.path}.a") is part.module
        assert part.is_in_tree()
    listed = [module for layer in model.get_adapter("a").values() for module in layer.values()]
    assert {id(part.module) for part in parts} <= {id(module) for top in listed for module in top.modules()}


def test_what_fails_in_the_middle_of_building_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = carrying("bert", "seq_bn")
    model.set_active_adapters("a")
    before, keys, traces = modules_of(model), list(model.state_dict()), hooks(model)
    built: list[int] = []
    make = LoRA.make_matrices

    def fails_at_the_third_site(self: LoRA) -> None:
        built.append(1)
        if len(built) == 3:
            raise MemoryError("no room")
        make(self)

    monkeypatch.setattr(LoRA, "make_matrices", fails_at_the_third_site)
    with pytest.raises(MemoryError):
        model.add_adapter("b", config=CONFIGS["lora"])
    assert len(built) == 3
    assert (modules_of(model), list(model.state_dict()), hooks(model)) == (before, keys, traces)
    assert set(model._engine.parts) == set(model.adapters_config) == {"a"}


@pytest.mark.parametrize("where", [(Parts, "put_in"), (Programs, "changed"), (Programs, "of")], ids=lambda at: at[1])
@pytest.mark.parametrize("verb", ["add", "overwrite"])
def test_an_interrupt_while_adding_leaves_nothing(verb: str, where: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = carrying("bert", "seq_bn"), inputs("bert")
    model.set_active_adapters("a")
    perturb(model, "a")
    before, keys, traces, output = modules_of(model), list(model.state_dict()), hooks(model), infer(model, given)
    reached: list[int] = []
    function = getattr(*where)

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        reached.append(1)
        if len(reached) == 1:
            raise KeyboardInterrupt
        return function(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.add_adapter("b" if verb == "add" else "a", config=CONFIGS["lora"], overwrite_ok=True)
    after = modules_of(model)
    assert reached and before.keys() == after.keys() and sorted(hooks(model)) == sorted(traces)
    assert all(after[name] == before[name] for name in after if not name.endswith("adapters"))
    assert sorted(model.state_dict()) == sorted(keys)
    assert set(model._engine.parts) == set(model.adapters_config) == {"a"}
    assert torch.equal(infer(model, given), output)


def test_a_replaced_adapter_takes_over_where_the_old_one_was_active() -> None:
    model, given = carrying("bert", "seq_bn", "lora"), inputs("bert")
    model.set_active_adapters(Stack("a", "b"))
    perturb(model, "a", "b")
    both = infer(model, given)
    old = {id(part.module) for part in model._engine.parts["a"]}
    torch.manual_seed(7)
    model.add_adapter("a", config=CONFIGS["par_bn"], overwrite_ok=True)
    assert str(model.active_adapters) == "Stack[a, b]"
    assert not old & set(modules_of(model).values())
    assert {id(part.module) for part in model._engine.parts["a"]} <= set(modules_of(model).values())

    fresh = carrying("bert", "seq_bn", "lora")
    fresh.delete_adapter("a")
    torch.manual_seed(7)
    fresh.add_adapter("a", config=CONFIGS["par_bn"])
    fresh.load_state_dict(model.state_dict())
    fresh.set_active_adapters(Stack("a", "b"))
    assert torch.equal(infer(model, given), infer(fresh, given))
    assert not torch.equal(infer(model, given), both)


@pytest.mark.parametrize("method", ["seq_bn", "lora", "prefix_tuning"])
def test_the_order_of_adding_does_not_matter(method: str) -> None:
    given, results = inputs("bert"), []
    for order in ("ab", "ba"):
        model = build("bert")
        for name in order:
            torch.manual_seed(ord(name))
            model.add_adapter(name, config=CONFIGS[method])
        perturb(model, "a", "b")
        model.set_active_adapters("a")
        results.append(infer(model, given))
    assert torch.equal(*results)


def test_a_name_that_is_not_there_is_refused_with_those_that_are() -> None:
    model = carrying("bert", "lora")
    for ask in (model._engine.require, model.merge_adapter, model.adapter_to):
        with pytest.raises(AdapterNameError, match=r"'aa'.*'a'"):
            ask("aa")
    model.delete_adapter("aa")
    assert set(model._engine.parts) == {"a"}
