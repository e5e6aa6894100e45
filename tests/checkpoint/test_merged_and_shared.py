"""Do models come back as they were that were saved while an adapter was merged, or while adapters shared tensors?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import adapters
from adapters import MTLLoRAConfig
from adapters.errors import AdapterNameError, ConfigError, MergeError
from tests.contract.cases import CONFIGS
from tests.tiny import adapter_parameters, build, infer, inputs, perturb


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
def test_merged_is_not_applied_twice(name: str, method: str, tmp_path: Path) -> None:
    model = build(name, "lm")
    model.add_adapter("a", config=CONFIGS[method], set_active=True)
    model.add_adapter("b", config="lora")
    perturb(model, "a")
    given = inputs(name, "lm")
    want = infer(model, given)
    model.merge_adapter("a")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["adapters"]["merged"] == ["a"]
    plain = type(build(name, "lm", adapted=False)).from_pretrained(tmp_path).eval()
    assert torch.allclose(infer(plain, given), want, atol=1e-4)
    loaded = adapters.load_model(tmp_path, type(plain)).eval()
    assert torch.allclose(infer(loaded, given), want, atol=1e-4)
    loaded.set_active_adapters("a")
    assert torch.allclose(infer(loaded, given), want, atol=1e-4)
    with pytest.raises(MergeError, match="was merged when this model was saved"):
        loaded.reset_adapter("a")
    loaded.save_pretrained(tmp_path / "again")
    again = adapters.load_model(tmp_path / "again", type(plain)).eval()
    again.set_active_adapters("a")
    assert torch.allclose(infer(again, given), want, atol=1e-4)


def test_one_adapter_is_saved_as_it_is_while_it_is_merged(tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config="lora", set_active=True)
    perturb(model, "a")
    want = infer(model, inputs("bert"))
    model.merge_adapter("a")
    model.save_adapter(tmp_path, "a")
    fresh = build("bert")
    fresh.load_adapter(tmp_path, set_active=True)
    assert torch.equal(infer(fresh, inputs("bert")), want)


def test_unmerged_models_say_nothing(tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config="lora")
    model.merge_adapter("a")
    model.reset_adapter("a")
    model.save_pretrained(tmp_path)
    assert "merged" not in json.loads((tmp_path / "config.json").read_text())["adapters"]


def sharing(*names: str) -> Any:
    model = build("bert")
    for i, name in enumerate(names):
        model.add_adapter(name, config=MTLLoRAConfig(r=4))
        perturb(model, name, seed=i)
    model.share_parameters(list(names), name="s")
    return model


def values(model: Any, name: str) -> dict[str, torch.Tensor]:
    return {key.replace(f".{name}.", ".x."): p.detach().clone() for key, p in adapter_parameters(model, name).items()}


@pytest.mark.parametrize("gone", ["a", "b", "c"])
def test_deleted_and_then_unshared(gone: str) -> None:
    model = sharing("a", "b", "c")
    before = {name: values_of(model, name) for name in "abc"}
    model.delete_adapter(gone)
    model.unshare_parameters("s")
    for name in set("abc") - {gone}:
        assert all(torch.equal(one, other) for one, other in zip(before[name], values_of(model, name)))
    left = [tensors_of(model, name) for name in sorted(set("abc") - {gone})]
    assert not {id(t) for t in left[0]} & {id(t) for t in left[1]}


def tensors_of(model: Any, name: str) -> list[torch.Tensor]:
    return [t for part in model._engine.parts[name] for t in part.module.parameters()]


def values_of(model: Any, name: str) -> list[torch.Tensor]:
    return [t.detach().clone() for t in tensors_of(model, name)]


def test_shared_adapters_are_saved_whole(tmp_path: Path) -> None:
    model = sharing("a", "b")
    model.save_adapter(tmp_path / "b", "b")
    fresh = build("bert")
    fresh.load_adapter(tmp_path / "b")
    assert all(torch.equal(one, other) for one, other in zip(values_of(fresh, "b"), values_of(model, "b"), strict=True))
    model.save_pretrained(tmp_path / "all")
    loaded = adapters.load_model(tmp_path / "all", type(model))
    for name in "ab":
        pairs = zip(values_of(loaded, name), values_of(model, name), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_what_cannot_be_shared() -> None:
    model = build("bert")
    model.add_adapter("a", config=MTLLoRAConfig(r=4))
    model.add_adapter("b", config=MTLLoRAConfig(r=2))
    before = {name: tensors_of(model, name) for name in "ab"}
    with pytest.raises(ConfigError, match="cannot share"):
        model.share_parameters(["a", "b"])
    with pytest.raises(AdapterNameError, match="'x'"):
        model.share_parameters(["a", "a"], reference_adapter_name="x")
    with pytest.raises(AdapterNameError, match="at least one"):
        model.share_parameters([], name="s")
    assert all(one is other for name in "ab" for one, other in zip(before[name], tensors_of(model, name)))
    with pytest.raises(AdapterNameError, match="no shared parameters"):
        model.unshare_parameters("s")
