"""Adapters are loaded in a process of their own, which is limited and cannot get out."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import pytest

from adapterhub.checks import load
from adapterhub.checks.load import load_check


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A folder with an adapter that the library wrote."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import adapters

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
    model = transformers.AutoModel.from_config(transformers.BertConfig(vocab_size=64, **sizes))
    adapters.init(model)
    model.add_adapter("a", config="double_seq_bn")
    folder = tmp_path_factory.mktemp("adapter")
    model.save_adapter(str(folder), "a", use_safetensors=True)
    return folder


@pytest.mark.slow
def test_an_adapter_of_the_library_loads(adapter):
    check = asyncio.run(load_check(adapter))
    assert (check.id, check.level) == ("load.random", "ok"), check
    assert check.message.startswith("The adapter loads")


@pytest.mark.slow
def test_a_broken_adapter_does_not(adapter, tmp_path):
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["config"]["architecture"] = "nonsense"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter.safetensors").write_bytes((adapter / "adapter.safetensors").read_bytes())
    check = asyncio.run(load_check(tmp_path))
    assert check.level == "error"
    assert "nonsense" in check.message


def test_adapters_of_unknown_models_are_not_tried(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    check = asyncio.run(load_check(tmp_path))
    assert (check.level, check.message[:21]) == ("ok", "Loading was not tried")


def test_the_process_is_ended_in_time(tmp_path):
    os.mkfifo(tmp_path / "adapter_config.json")  # whoever reads it waits for ever
    begin = time.monotonic()
    check = asyncio.run(load_check(tmp_path, seconds=0.5))
    assert check.level == "error"
    assert "more than 0.5 seconds" in check.message
    assert time.monotonic() - begin < 10


def test_too_little_memory_is_an_answer(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"a": "' + "x" * (1 << 20) + '"}')
    check = asyncio.run(load_check(tmp_path, memory=1 << 20))
    assert check.level == "error"


def test_the_environment_holds_no_secrets_and_no_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    environment = load._environment(tmp_path)
    assert "secret" not in environment.values()
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HTTPS_PROXY"] == environment["https_proxy"] == "http://127.0.0.1:9"


def test_the_hub_does_not_import_torch():
    code = (
        "import sys, adapterhub.checks.load, adapterhub.checks.load_worker; print({'torch', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
