"""What methods declare to the runtime, for every method: taps, facts they need, what never trains, what is ejected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from adapters.composition.evaluate import Adapter
from adapters.errors import UnsupportedError
from adapters.methods import METHODS
from adapters.methods.base import AdapterModule, MethodModule, fixed_parameters
from adapters.methods.config import members_of
from adapters.methods.invertible import NICE
from adapters.methods.state import HiddenState, ResidualState
from tests import tiny
from tests.contract.cases import CONFIGS, every_pair

TAPS = {
    "LinearSite": {"output", "input"},
    "TableSite": {"output"},
    "NormSite": {"output"},
    "ResidualSite": {"h", "sum", "branch"},
    "AttentionSite": {"prefix"},
    "LayerSite": {"output"},
    "EmbeddingSite": set[str](),
    "PromptSite": set[str](),
}


def modules_of(model: Any, name: str) -> list[AdapterModule[Any]]:
    return [m for m in model.modules() if isinstance(m, AdapterModule) and m.name == name]


@every_pair(names=("bert", "llama"))
def test_direct_functions_are_taps_of_their_site(method: str, name: str) -> None:
    model = tiny.build(name)
    model.add_adapter("a", config=CONFIGS[method])
    for module in modules_of(model, "a"):
        direct = module.direct()
        assert direct is None or direct[0] in TAPS[type(module.site).__name__]
        assert direct is None or callable(direct[1])


def test_parallel_function_is_the_general_one() -> None:
    model = tiny.build("bert")
    model.add_adapter("a", config="par_bn[init_weights='bert']")
    for module in modules_of(model, "a"):
        tap, function = module.direct() or ("", None)
        assert tap == "branch"
        assert function is not None
        h, x = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
        state = Adapter(module).run(ResidualState(h, x))
        torch.testing.assert_close(function(h, x), state.h + state.aside)


def test_gated_prefixes_need_the_hidden_states() -> None:
    model = tiny.build("bert")
    model.add_adapter("plain", config="prefix_tuning")
    model.add_adapter("gated", config="prefix_tuning[use_gating=True]")
    assert {module.needs for module in modules_of(model, "plain")} == {frozenset()}
    assert {module.needs for module in modules_of(model, "gated")} == {frozenset(["hidden", "mask"])}


@pytest.mark.parametrize(("config", "after"), [("seq_bn", True), ("seq_bn[original_ln_after=False]", False)])
def test_bottlenecks_say_whether_a_norm_follows(config: str, after: bool) -> None:
    model = tiny.build("bert")
    model.add_adapter("a", config=config)
    assert {module.norm_after for module in modules_of(model, "a")} == {after}


def test_prompts_say_how_long_they_are() -> None:
    model = tiny.build("bert")
    model.add_adapter("a", config="prompt_tuning[prompt_length=7]")
    assert [module.extra_positions for module in modules_of(model, "a")] == [7]


def test_only_bijections_invert() -> None:
    model = tiny.build("bert")
    model.add_adapter("a", config="seq_bn_inv|lora")
    tiny.perturb(model, "a")
    inverted = 0
    for module in modules_of(model, "a"):
        state = HiddenState(torch.randn(2, 3, 32))
        if isinstance(module, NICE):
            torch.testing.assert_close(module.invert(module.run(state)).h, state.h)
            inverted += 1
        else:
            with pytest.raises(UnsupportedError, match="cannot be inverted"):
                module.invert(state)
    assert inverted == 1


def test_fixed_parameters_are_those_that_do_not_train() -> None:
    for name, config in CONFIGS.items():
        model = tiny.build("bert")
        model.add_adapter("a", config=config)
        model.train_adapter("a")
        fixed = {id(p) for module in model.modules() for p in fixed_parameters(module)}
        still = {id(p) for p in tiny.adapter_parameters(model, "a").values() if not p.requires_grad}
        assert fixed == still, name


def test_fixed_parameters_of_compacter_follow_its_config() -> None:
    model = tiny.build("bert")
    model.add_adapter("a", config="compacter[reduction_factor=4,phm_dim=2,learn_phm=False]")
    model.add_adapter("b", config="compacter[reduction_factor=4,phm_dim=2]")
    owners = {name: [p for m in _owners(model, name) for p in fixed_parameters(m)] for name in "ab"}
    assert owners["a"]
    assert not owners["b"]


def _owners(model: nn.Module, name: str) -> list[nn.Module]:
    return [m for key, m in model.named_modules() if key.endswith(f".{name}") and isinstance(m, MethodModule)]


def test_ejecting_is_declared() -> None:
    for config in CONFIGS.values():
        model = tiny.build("bert")
        model.add_adapter("a", config=config)
        methods = [m for member in members_of(config) for m in METHODS if m.handles(member)]
        ejects = [module.eject() for module in modules_of(model, "a")]
        assert any(ejects) == ("PrefixTuning" in {m.__name__ for m in methods})
        for member in members_of(config):
            for method in (m for m in METHODS if m.handles(member)):
                assert method.ejected(member).get("flat") in (None, True)
