"""Does a whole model come back with its adapters, fusions, heads, and under transformers' own names?"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import adapters
from adapters import AdapterModelInterface, AutoAdapterModel, Fuse, ModelAdaptersConfig
from adapters.errors import CheckpointError, ConfigError
from tests.contract.cases import carrying, every_pair
from tests.heads.models import PAIRS, add_head, inputs_for, tiny
from tests.tiny import build, hooks, infer, inputs, perturb, randomised

WEIGHTS = "model.safetensors"


def plain_class(model: Any) -> Any:
    return getattr(transformers, type(model).__name__)


def reopened(model: Any, folder: Path, **kwargs: Any) -> Any:
    model.save_pretrained(folder)
    return adapters.load_model(folder, plain_class(model), **kwargs)


def same_state(one: Any, other: Any) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.versions
@every_pair(names=("bert", "gpt2", "t5", "vit"))
def test_every_method(method: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, given = carrying(name, method, method), inputs(name)
    perturb(model, "a", "b")
    before = model.state_dict()
    with caplog.at_level(logging.WARNING):
        found = reopened(model, tmp_path)
    assert not caplog.records
    assert same_state(found, model)
    assert not hasattr(model.config, "adapters") and not hasattr(found.config, "adapters")
    assert model.state_dict().keys() == before.keys()
    assert found.active_adapters is None
    assert not any(p.is_meta for p in found.parameters())
    for setup in ("a", "b", None):
        model.set_active_adapters(setup)
        found.set_active_adapters(setup)
        assert torch.equal(infer(found, given), infer(model, given))
    for adapter in "ab":
        found.delete_adapter(adapter)
    assert found.state_dict().keys() == build(name, adapted=False).state_dict().keys()
    assert not hooks(found)


@pytest.mark.parametrize("task", ["classification", "lm", "base"])
@pytest.mark.parametrize("name", ["bert", "t5", "vit", "llama"])
def test_plain_classes_and_flexible_heads(name: str, task: str, tmp_path: Path) -> None:
    if (name, task) == ("vit", "lm"):
        pytest.skip("there are none")
    model = carrying(name, "unipelt", task=task)
    perturb(model, "a")
    assert same_state(reopened(model, tmp_path / "plain"), model)
    flexible = AutoAdapterModel.from_pretrained(tmp_path / "plain")
    assert list(flexible.adapters_config) == ["a"]
    assert list(flexible.heads) == ([] if task == "base" else ["default"])
    model.save_adapter(tmp_path / "a", "a", with_head=False)
    flexible.save_adapter(tmp_path / "b", "a", with_head=False)
    stored = [load_file(tmp_path / folder / "adapter.safetensors") for folder in "ab"]
    assert all(torch.equal(one, other) for one, other in zip(*(s.values() for s in stored)))
    flexible.save_pretrained(tmp_path / "flexible")
    again = AutoAdapterModel.from_pretrained(tmp_path / "flexible")
    assert same_state(again, flexible)
    base = adapters.load_model(tmp_path / "flexible", type(model.base_model) if task != "base" else plain_class(model))
    assert list(base.adapters_config) == ["a"]


@pytest.mark.parametrize(("kind", "head_type"), PAIRS)
def test_every_head(kind: str, head_type: str, tmp_path: Path) -> None:
    model = tiny(kind)
    model.add_adapter("a", config="lora")
    add_head(model, head_type)
    add_head(model, head_type, "i")
    randomised(model)
    perturb(model, "a")
    model.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())
    assert list(data["prediction_heads"]) == ["h", "i"]
    found = AutoAdapterModel.from_pretrained(tmp_path)
    assert same_state(found, model)
    given = inputs_for(model, head_type)
    for target in (model, found):
        target.set_active_adapters("a")
        target.active_head = "h"
    for one, other in zip(model(**given).to_tuple(), found(**given).to_tuple()):
        assert not isinstance(one, torch.Tensor) or torch.equal(one, other)


def test_names_on_disk(tmp_path: Path) -> None:
    model = build("vit", "classification")
    model.add_adapter("a", config="unipelt")
    model.add_adapter("b", config="lora[intermediate_lora=True,output_lora=True]")
    expected: set[str] = set()
    for name in "ab":
        model.save_adapter(tmp_path / name, name, with_head=False)
        expected |= load_file(tmp_path / name / "adapter.safetensors").keys()
    model.save_pretrained(tmp_path)
    found = load_file(tmp_path / WEIGHTS).keys()
    build("vit", "classification", adapted=False).save_pretrained(tmp_path / "plain")
    assert found == expected | load_file(tmp_path / "plain" / WEIGHTS).keys()


def test_what_config_json_says(tmp_path: Path) -> None:
    model = carrying("bert", "seq_bn", "seq_bn", "lora")
    model.add_adapter_fusion(["a", "b"], "static")
    model.add_adapter_fusion(["b", "a"], name="mine")
    model.save_pretrained(tmp_path)
    data = json.loads((tmp_path / "config.json").read_text())["adapters"]
    assert data == {**model.adapters_config.to_dict(), "unchained": []}
    assert set(data) == {"adapters", "config_map", "fusion_config_map", "fusion_name_map", "fusions", "unchained"}
    assert data["fusion_name_map"] == {"mine": ["b", "a"]}


def test_fusions(tmp_path: Path) -> None:
    model = carrying("bert", "double_seq_bn", "double_seq_bn")
    model.add_adapter_fusion(["a", "b"])
    model.add_adapter_fusion(["a", "b"], "static", name="mine")
    perturb(model, "a", "b", "a,b", "mine")
    found = reopened(model, tmp_path)
    assert same_state(found, model)
    for fuse in (Fuse("a", "b"), Fuse("a", "b", name="mine")):
        for target in (model, found):
            target.set_active_adapters(fuse)
        assert torch.equal(infer(found, inputs("bert")), infer(model, inputs("bert")))


def test_old_descriptions_of_fusions(tmp_path: Path) -> None:
    model = carrying("bert", "seq_bn", "seq_bn")
    model.add_adapter_fusion(["a", "b"], "static")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    data["adapters"] = {
        "adapters": {"a": ["text_task", "x"], "b": [None, "seq_bn"]},
        "config_map": {"x": model.adapters_config.get("a").to_dict()},
    }
    data["adapters"]["config_map"]["seq_bn"] = data["adapters"]["config_map"]["x"]
    data |= {"adapter_fusion_models": [["a", "b"]], "adapter_fusion": "static"}
    path.write_text(json.dumps(data))
    found = adapters.load_model(tmp_path, transformers.BertModel)
    assert same_state(found, model)
    assert not hasattr(found.config, "adapter_fusion_models")


@pytest.mark.parametrize("kwargs", [{"max_shard_size": "20KB"}, {"variant": "fp"}])
def test_other_files(kwargs: Any, tmp_path: Path) -> None:
    model = carrying("bert", "mam", task="classification")
    perturb(model, "a")
    model.save_pretrained(tmp_path, **kwargs)
    assert not (tmp_path / WEIGHTS).exists()
    options = {"variant": "fp"} if "variant" in kwargs else {}
    found = adapters.load_model(tmp_path, transformers.BertForSequenceClassification, **options)
    assert same_state(found, model)


def test_pickled_files(tmp_path: Path) -> None:
    model = carrying("bert", "mam")
    model.save_pretrained(tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    found = adapters.load_model(tmp_path, transformers.BertModel, use_safetensors=False)
    assert same_state(found, model)


def test_a_state_that_was_gathered_elsewhere(tmp_path: Path) -> None:
    model = carrying("bert", "lora")
    state = {key: tensor + 1 if ".a." in key else tensor for key, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    found = adapters.load_model(tmp_path, transformers.BertModel)
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in state.items())
    config = found.config
    config.adapters = model.adapters_config.to_dict()
    again = type(found).from_pretrained(None, config=config, state_dict=load_file(tmp_path / WEIGHTS))
    assert same_state(again, found)


def test_dtype_and_loading_info(tmp_path: Path) -> None:
    carrying("bert", "double_seq_bn").save_pretrained(tmp_path)
    opened = adapters.load_model(
        tmp_path, transformers.BertModel, dtype=torch.bfloat16, output_loading_info=True, output_attentions=True
    )
    model, info = opened
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config.output_attentions
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_a_plain_class_ignores_adapters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = carrying("bert", "lora")
    model.save_pretrained(tmp_path)
    plain = transformers.BertModel.from_pretrained(tmp_path)
    model.set_active_adapters(None)
    assert torch.equal(infer(plain, inputs("bert")), infer(model, inputs("bert")))


def test_a_model_without_adapters(tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path / "ours")
    build("bert", adapted=False).save_pretrained(tmp_path / "theirs")
    for name in ("config.json", WEIGHTS):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


@pytest.mark.parametrize("change", ["missing", "shape", "config"])
def test_files_that_do_not_fit(change: str, tmp_path: Path) -> None:
    carrying("bert", "lora").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    key = "encoder.layer.1.attention.self.value.loras.a.lora_B"
    if change == "missing":
        del tensors[key]
    elif change == "shape":
        tensors[key] = torch.ones(2, 2)
    else:
        path = tmp_path / "config.json"
        data = json.loads(path.read_text())
        data["adapters"]["adapters"]["a"] = "unheard-of"
        path.write_text(json.dumps(data))
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    error, message = (ConfigError, "unheard-of") if change == "config" else (CheckpointError, key)
    with pytest.raises(error, match=message):
        adapters.load_model(tmp_path, transformers.BertModel)


def test_load_model_with_a_class_that_has_adapters(tmp_path: Path) -> None:
    model = tiny("bert")
    model.add_adapter("a", config="lora")
    model.save_pretrained(tmp_path)
    assert list(adapters.load_model(tmp_path, adapters.BertAdapterModel).adapters_config) == ["a"]
    opened = adapters.load_model(tmp_path, transformers.BertModel)
    assert type(opened).__name__ == "BertModel" and isinstance(opened, transformers.BertModel)


def test_an_interface(tmp_path: Path) -> None:
    interface = AdapterModelInterface(
        adapter_methods=["bottleneck", "lora"],
        model_embeddings="embeddings",
        model_layers="encoder.layer",
        layer_self_attn="attention.self",
        layer_cross_attn=None,
        attn_k_proj="key",
        attn_q_proj="query",
        attn_v_proj="value",
        attn_o_proj=None,
        layer_intermediate_proj="intermediate.dense",
        layer_output_proj="output.dense",
    )
    model = adapters.init(build("bert", adapted=False), interface=interface)
    model.add_adapter("a", config="lora[output_lora=True]")
    perturb(model, "a")
    for folder, save in (("adapter", lambda f: model.save_adapter(f, "a")), ("model", model.save_pretrained)):
        save(tmp_path / folder)
        data = json.loads((tmp_path / folder / "adapter_interface.json").read_text())
        assert data["interface"] == interface.to_dict() and data["model_type"] == "bert"
    found = adapters.load_model(tmp_path / "model", transformers.BertModel)
    assert found._engine.interface == interface
    assert same_state(found, model)
    (tmp_path / "model" / "adapter_interface.json").write_text('{"interface": {"layers": 3}}')
    with pytest.raises(CheckpointError, match="interface"):
        adapters.load_model(tmp_path / "model", transformers.BertModel)
    given = adapters.load_model(tmp_path / "model", transformers.BertModel, interface=interface)
    assert same_state(given, model)


def test_adapters_of_a_config_are_added_untrained() -> None:
    stored = ModelAdaptersConfig()
    stored.add("a", "lora")
    model = adapters.init(build("bert", adapted=False), adapters_config=stored)
    assert list(model.adapters_config) == ["a"]


def test_init_says_that_weights_of_stored_adapters_are_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    carrying("bert", "lora").save_pretrained(tmp_path)
    model = adapters.init(transformers.BertModel.from_pretrained(tmp_path))
    assert list(model.adapters_config) == ["a"]
    assert "load_model" in caplog.text
