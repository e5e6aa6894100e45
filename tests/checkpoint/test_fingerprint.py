"""Is an adapter of another base model told from one of this, and never the other way round?"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import adapters
from adapters.checkpoint.fingerprint import ENTRY, sample
from adapters.checkpoint.layout import ADAPTER
from adapters.checkpoint.tensors import METADATA
from adapters.errors import CheckpointError
from tests.contract.cases import CONFIGS
from tests.heads.models import add_head, tiny
from tests.tiny import TINY_MODELS, build, perturb


def other(model: Any) -> Any:
    """The same model with other random weights."""
    model = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(9)
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def warned(model: Any, folder: Path, caplog: pytest.LogCaptureFixture, **kwargs: Any) -> bool:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model.load_adapter(folder, **kwargs)
    return "other weights" in caplog.text


@pytest.mark.parametrize("name", TINY_MODELS)
def test_another_base_model(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build(name)
    model.add_adapter("a", config="lora")
    model.save_adapter(tmp_path, "a")
    assert not warned(build(name), tmp_path, caplog)
    strange = other(build(name))
    assert warned(strange, tmp_path, caplog)
    assert not warned(strange, tmp_path, caplog, load_as="b"), "said once"
    assert ENTRY not in json.loads((tmp_path / ADAPTER.config).read_text()), "others compare configs"
    path = tmp_path / ADAPTER.safetensors
    save_file(load_file(path), path)
    assert not warned(other(build(name)), tmp_path, caplog)


def test_pickle_files_tell_the_base_model_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beside the tensors, where readers that know nothing of it find a plain dict of tensors."""
    model = build("bert")
    model.add_adapter("a", config="lora")
    model.save_adapter(tmp_path, "a", use_safetensors=False)
    assert not warned(build("bert"), tmp_path, caplog)
    assert warned(other(build("bert")), tmp_path, caplog)
    data = torch.load(tmp_path / ADAPTER.pickle, weights_only=True)
    assert isinstance(data, dict) and all(type(value) is torch.Tensor for value in data.values())
    path = tmp_path / ADAPTER.config
    path.write_text(path.read_text().replace('"r": 8', '"r": 9'))
    caplog.clear()
    with pytest.raises(CheckpointError):
        build("bert").load_adapter(tmp_path)
    assert "were not saved together" in caplog.text
    for strange in (7, {"a": 1, 2: "b"}, {ENTRY: "{", "chained": "x"}):
        setattr(data, METADATA, strange)
        torch.save(data, tmp_path / ADAPTER.pickle)
        path.write_text(path.read_text().replace('"r": 9', '"r": 8'))
        assert not warned(other(build("bert")), tmp_path, caplog)


def test_pickle_files_tell_what_is_chained(tmp_path: Path) -> None:
    for first_only in (False, True):
        model = build("bert")
        model.add_adapter("a", config="loreft")
        if first_only:
            model._engine.act_first_only("a")
        model.save_adapter(tmp_path, "a", use_safetensors=False)
        again = build("bert")
        again.load_adapter(tmp_path)
        assert again._engine.is_chained("a") is not first_only


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_same_base_model_in_another_type(
    dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("bert", "llama", "t5", "gpt2"):
        model = build(name)
        model.add_adapter("a", config="lora")
        model.save_adapter(tmp_path / name, "a")
        assert not warned(build(name).to(dtype), tmp_path / name, caplog)


@pytest.mark.parametrize("method", CONFIGS)
def test_adapters_do_not_count(method: str) -> None:
    model = build("bert")
    before = sample(model._engine)
    assert before
    model.add_adapter("a", config=CONFIGS[method])
    model.set_active_adapters("a")
    perturb(model, "a")
    assert sample(model._engine) == before


@pytest.mark.parametrize("name", TINY_MODELS)
def test_merging_and_embeddings_do_not_count(name: str) -> None:
    model = build(name)
    before = sample(model._engine)
    model.add_adapter("a", config=CONFIGS["lora_everywhere"])
    perturb(model, "a")
    model.merge_adapter("a")
    if TINY_MODELS[name].kind != "image":
        model.resize_token_embeddings(80)
    assert sample(model._engine) == before


def test_a_base_model_that_was_trained_a_little(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("bert")
    model.add_adapter("a", config="lora")
    model.save_adapter(tmp_path, "a")
    trained = build("bert")
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
    assert not warned(trained, tmp_path, caplog)


def test_weights_that_cannot_be_read() -> None:
    assert sample(build("bert").to("meta")._engine) == {}


def test_heads_and_fusions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny("bert")
    for name in "ab":
        model.add_adapter(name, config="seq_bn[reduction_factor=4]")
    model.add_adapter_fusion(["a", "b"])
    add_head(model, "classification", "h")
    model.save_head(tmp_path / "head", "h")
    model.save_adapter_fusion(tmp_path / "fusion", "a,b")
    for load in ("load_head", "load_adapter_fusion"):
        strange = other(model)
        caplog.clear()
        getattr(strange, load)(tmp_path / ("head" if load == "load_head" else "fusion"))
        assert "other weights" in caplog.text


def test_a_layer_more_or_less() -> None:
    one, two = (adapters.init(build("bert", adapted=False, num_hidden_layers=n)) for n in (2, 3))
    assert set(sample(one._engine)) & set(sample(two._engine))
