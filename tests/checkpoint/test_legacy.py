"""Are files of earlier versions and of other classes read as they were meant?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

import adapters
from adapters import BnConfig, SeqBnConfig
from adapters.checkpoint.layout import ADAPTER
from tests.contract.cases import carrying
from tests.tiny import build, config, infer, inputs, perturb

Tensors = dict[str, Tensor]


def trained(name: str = "bert", method: str = "seq_bn") -> Any:
    model = carrying(name, method)
    perturb(model, "a")
    model.set_active_adapters("a")
    return model


def rewritten(
    model: Any, folder: Path, data: dict[str, Any] | None = None, rename: Callable[[str], str] | None = None
) -> Path:
    """Saves adapter "a", then changes the config file (None removes an entry) and the tensors' names."""
    model.save_adapter(folder, "a", with_head=False)
    stored = json.loads((folder / ADAPTER.config).read_text())
    for key, value in (data or {}).items():
        stored.pop(key, None)
        if value is not None:
            stored[key] = value
    (folder / ADAPTER.config).write_text(json.dumps(stored))
    if rename is not None:
        tensors = {rename(key): tensor for key, tensor in load_file(folder / ADAPTER.safetensors).items()}
        save_file(tensors, folder / ADAPTER.safetensors)
    return folder


def loads(folder: Path, name: str = "bert") -> Any:
    model = build(name)
    model.load_adapter(folder, set_active=True)
    return model


def test_first_names_of_containers(tmp_path: Path) -> None:
    model = trained(method="double_seq_bn_inv")

    def rename(key: str) -> str:
        key = key.replace("attention.output.adapters.", "attention.output.attention_text_task_adapters.")
        key = key.replace(".output.adapters.", ".output.layer_text_lang_adapters.")
        return key.replace("invertible_adapters.", "invertible_lang_adapters.")

    rewritten(model, tmp_path, rename=rename)
    assert torch.equal(infer(loads(tmp_path), inputs("bert")), infer(model, inputs("bert")))


def test_activations_before_files_had_a_version(tmp_path: Path) -> None:
    model = trained()
    for stored, meant in (("gelu", "gelu_new"), ("gelu_orig", "gelu"), ("relu", "relu")):
        data = model.adapters_config.get("a").to_dict() | {"non_linearity": stored}
        rewritten(model, tmp_path / stored, {"config": data, "version": None})
        assert loads(tmp_path / stored).adapters_config.get("a").non_linearity == meant
        if stored != "gelu_orig":
            rewritten(model, tmp_path / stored, {"config": data, "version": "3.2.1"})
            assert loads(tmp_path / stored).adapters_config.get("a").non_linearity == stored


@pytest.mark.parametrize(
    ("version", "alpha"),
    [
        ("adapters.0.1.2", 4),
        ("adapters.1.0.1", 4),
        ("adapters.1.1.0", 6),
        ("adapters.1.10.0", 6),
        ("3.2.1", 6),
        (None, 6),
    ],
)
def test_versions_that_ignored_alpha(version: str | None, alpha: int, tmp_path: Path) -> None:
    model = trained(method="lora_everywhere")
    assert loads(rewritten(model, tmp_path, {"version": version})).adapters_config.get("a").alpha == alpha


@pytest.mark.parametrize("identifier", ["pfeiffer", "seq_bn", "houlsby", "parallel", "pfeiffer+inv", "lora[r=4]"])
def test_configs_that_are_names(identifier: str, tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config=identifier)
    rewritten(model, tmp_path, {"config": identifier})
    assert loads(tmp_path).adapters_config.get("a") == model.adapters_config.get("a")


def test_configs_with_few_and_unknown_fields(tmp_path: Path) -> None:
    model = trained()
    few = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 4, "non_linearity": "relu"}
    rewritten(model, tmp_path, {"config": {**few, "new_attention_norm": False, "architecture": None}})
    found = loads(tmp_path).adapters_config.get("a")
    assert type(found) is BnConfig
    assert (found.original_ln_before, found.new_attention_norm) == (False, False)


def test_reduction_factors_per_layer(tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config=SeqBnConfig(reduction_factor={"0": 2, "default": 8}))
    model.save_adapter(tmp_path, "a")
    shapes = [tuple(part.module.adapter_up.weight.shape) for part in loads(tmp_path)._engine.parts["a"]]
    assert shapes == [(32, 16), (32, 4)]


def test_task_adapters_that_never_used_their_bijection(tmp_path: Path) -> None:
    model = trained(method="seq_bn_inv")
    rewritten(model, tmp_path, {"type": "text_task"})
    assert loads(tmp_path).adapters_config.get("a").inv_adapter == "nice"
    tensors = load_file(tmp_path / ADAPTER.safetensors)
    save_file({key: t for key, t in tensors.items() if "invertible" not in key}, tmp_path / ADAPTER.safetensors)
    fresh = loads(tmp_path)
    found = fresh.adapters_config.get("a")
    assert (found.inv_adapter, found.inv_adapter_reduction_factor) == (None, None)
    assert fresh.get_invertible_adapter() is None


def test_prefixes_that_are_stored_again_in_every_layer(tmp_path: Path) -> None:
    model = trained(method="prefix_tuning")
    model.save_adapter(tmp_path, "a")
    tensors = load_file(tmp_path / ADAPTER.safetensors)
    for layer in range(2):
        for key, tensor in list(tensors.items()):
            inner = key.removeprefix("prefix_tuning.")
            tensors[f"encoder.layer.{layer}.attention.self.prefix_tuning.pool.{inner}"] = tensor.clone()
    save_file(tensors, tmp_path / ADAPTER.safetensors)
    assert torch.equal(infer(loads(tmp_path), inputs("bert")), infer(model, inputs("bert")))


@pytest.mark.parametrize("dropped", [None, "adapter_norm_before.", "adapter_down.0."])
def test_a_norm_with_two_names(dropped: str | None, tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config="seq_bn[reduction_factor=4,ln_before=True]", set_active=True)
    perturb(model, "a")
    model.save_adapter(tmp_path, "a")
    tensors = load_file(tmp_path / ADAPTER.safetensors)
    assert (
        sum("adapter_norm_before." in key for key in tensors) == sum("adapter_down.0." in key for key in tensors) == 4
    )
    save_file({k: t for k, t in tensors.items() if not dropped or dropped not in k}, tmp_path / ADAPTER.safetensors)
    assert torch.equal(infer(loads(tmp_path), inputs("bert")), infer(model, inputs("bert")))


def test_zero_biases_of_fused_projections(tmp_path: Path) -> None:
    model = trained()
    model.save_adapter(tmp_path, "a")
    tensors = load_file(tmp_path / ADAPTER.safetensors)
    save_file(
        {**tensors, "encoder.layer.0.attention.self.in_proj.bias": torch.zeros(3)}, tmp_path / ADAPTER.safetensors
    )
    loads(tmp_path)


# Names of other classes


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart", "distilbert", "vit"])
def test_from_a_base_model_into_flexible_heads_and_back(name: str, tmp_path: Path) -> None:
    plain = trained(name, "unipelt")
    plain.save_adapter(tmp_path / "plain", "a")
    flexible = adapters.AutoAdapterModel.from_config(config(name))
    flexible.base_model.load_state_dict(build(name, adapted=False).state_dict())
    flexible.eval().load_adapter(tmp_path / "plain", set_active=True)
    flexible.save_adapter(tmp_path / "flexible", "a")
    prefix = f"{flexible.base_model_prefix}."
    keys = list(load_file(tmp_path / "flexible" / ADAPTER.safetensors))
    assert all(key.startswith(prefix) for key in keys)
    assert infer(loads(tmp_path / "flexible", name), inputs(name)).equal(infer(plain, inputs(name)))


def test_llama_for_question_answering_calls_its_model_transformer(tmp_path: Path) -> None:
    model = adapters.init(AutoModelForQuestionAnswering.from_config(config("llama")))
    model.add_adapter("a", config="lora")
    perturb(model, "a")
    model.save_adapter(tmp_path / "qa", "a", with_head=False)
    keys = load_file(tmp_path / "qa" / ADAPTER.safetensors)
    assert all(key.startswith("transformer.layers.") for key in keys)
    base = build("llama")
    base.load_adapter(tmp_path / "qa")
    base.save_adapter(tmp_path / "base", "a")
    assert load_file(tmp_path / "base" / ADAPTER.safetensors).keys() == {k.removeprefix("transformer.") for k in keys}
    headed = build("llama", "lm")
    headed.load_adapter(tmp_path / "qa")
    headed.save_adapter(tmp_path / "headed", "a", with_head=False)
    again = adapters.init(AutoModelForQuestionAnswering.from_config(config("llama")))
    for source in ("base", "headed"):
        again.load_adapter(tmp_path / source, load_as=source)
        again.save_adapter(tmp_path / "again", source, with_head=False)
        stored = load_file(tmp_path / "again" / ADAPTER.safetensors)
        assert all(torch.equal(stored[key.replace(".a.", f".{source}.")], tensor) for key, tensor in keys.items())


def test_vit_keeps_its_names_on_disk(tmp_path: Path) -> None:
    model = build("vit", "classification")
    model.add_adapter("a", config="lora[intermediate_lora=True,output_lora=True]")
    model.add_adapter("b", config="double_seq_bn")
    for name in "ab":
        model.save_adapter(tmp_path / name, name, with_head=False)
    lora, bottleneck = (load_file(tmp_path / name / ADAPTER.safetensors) for name in "ab")
    assert {key.rpartition(".loras.a.")[0] for key in lora if ".0." in key} == {
        f"vit.encoder.layer.0.{part}"
        for part in ("attention.attention.query", "attention.attention.value", "intermediate.dense", "output.dense")
    }
    assert {key.rpartition(".adapters.b.")[0] for key in bottleneck if "layer.0." in key} == {
        "vit.encoder.layer.0.attention_adapters",
        "vit.encoder.layer.0.output.output_adapters",
    }


# Names that begin like others


def test_only_the_adapter_itself_is_saved(tmp_path: Path) -> None:
    model = build("bert")
    for name in ("a", "ab", "a_b"):
        model.add_adapter(name, config="compacter[reduction_factor=4]")
    model.save_adapter(tmp_path, "a")
    keys = load_file(tmp_path / ADAPTER.safetensors)
    assert all(".a." in f".{key}" for key in keys)
    assert "shared_parameters.a.phm_rule" in keys
    model.delete_adapter("a")
    model.load_adapter(tmp_path)


def test_names_like_those_of_modules(tmp_path: Path) -> None:
    for name in ("adapters", "loras", "layer", "0", "weight", "type"):
        model = build("bert")
        model.add_adapter(name, config="unipelt", set_active=True)
        perturb(model, name)
        model.save_adapter(tmp_path / name, name)
        assert torch.equal(infer(loads(tmp_path / name), inputs("bert")), infer(model, inputs("bert")))
