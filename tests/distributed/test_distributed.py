"""Two processes compute, train, save and load what one does: DDP, FSDP2, tensor parallelism."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import AdapterTrainer
from tests.distributed.checks import ROWS, RUN, losses_of
from tests.distributed.launch import Processes
from tests.tiny import adapter_parameters, build
from tests.training.toy import any_examples, arguments, trained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("not __import__('torch').distributed.is_available()", reason="torch has no distributed"),
]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    found = Processes()
    yield found
    found.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("base"))
    build("llama", "lm", adapted=False).save_pretrained(folder)
    return folder


TRAINED: list[tuple[str, dict[str, Any]]] = [
    ("ddp", {"what": "lora"}),
    ("ddp", {"what": "prefix_tuning"}),
    ("ddp", {"what": "fusion"}),
    ("ddp", {"what": "routing"}),
    ("ddp", {"what": "lora", "parts": 2}),
    ("ddp static", {"what": "unipelt", "checkpointing": True}),
    ("fsdp", {"what": "dora"}),
    ("fsdp", {"what": "vera"}),
    ("fsdp", {"what": "oft"}),
    ("fsdp", {"what": "compacter"}),
    ("fsdp", {"what": "seq_bn_inv"}),
    ("fsdp", {"what": "prefix_tuning"}),
    ("fsdp", {"what": "loreft_ends"}),
    ("fsdp", {"what": "prompt_tuning"}),
    ("fsdp", {"what": "ln_tuning"}),
    ("fsdp", {"what": "fusion"}),
    ("fsdp", {"what": "routing"}),
    ("fsdp", {"what": "lora", "parts": 2}),
    ("fsdp", {"what": "unipelt", "checkpointing": True}),
]


@pytest.mark.parametrize(
    ("wrapper", "given"), TRAINED, ids=[f"{w} {'-'.join(map(str, g.values()))}" for w, g in TRAINED]
)
def test_training_is_that_of_one_process(processes: Processes, wrapper: str, given: dict[str, Any]) -> None:
    processes.run("trains_alike", wrapper=wrapper, **given)


def test_files_of_a_sharded_model_are_those_of_a_whole_one(processes: Processes, tmp_path: Path) -> None:
    first, second = processes.run("files", folder=str(tmp_path), method="lora")
    assert first == second and "adapter.safetensors" in first
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == sorted(first), "nothing else is left there"


def test_adapters_are_merged_into_shards(processes: Processes, base: str) -> None:
    processes.run("merges", wrapper="fsdp", method="lora_everywhere")
    processes.run("merges", wrapper=base, method="dora")


def test_adapters_are_added_to_a_sharded_model(processes: Processes) -> None:
    processes.run("added_later", method="lora")
    processes.run("initialised_later")
    processes.run("wrapped_layers")


def test_without_a_process_group_the_reason_is_given(processes: Processes) -> None:
    processes.run("disconnected")


@pytest.mark.parametrize(
    "method", ["lora_everywhere", "dora", "oft", "ia3_paper", "seq_bn", "prefix_tuning", "unipelt"]
)
def test_tensor_parallelism_computes_and_trains_what_one_process_does(
    processes: Processes, base: str, method: str
) -> None:
    processes.run("splits_alike", method=method, folder=base)


@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp"])
def test_the_trainer_is_that_of_one_process(processes: Processes, tmp_path: Path, fsdp: bool) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    losses = processes.run("fits", folder=str(tmp_path), fsdp=fsdp)
    alone = AdapterTrainer(
        model=trained("llama", "lora"),
        args=arguments(tmp_path / "alone", per_device_train_batch_size=ROWS, **RUN),
        train_dataset=any_examples("llama", 32),
    )
    alone.train()
    for found in losses:
        assert found == pytest.approx(losses_of(alone), rel=1e-5)
    checkpoint = {path.name: path for path in (tmp_path / "checkpoint-2").iterdir()}
    models = [path for name, path in checkpoint.items() if "model" in name]
    assert "a" in checkpoint and all(path.stat().st_size < 1000 for path in models), "it holds adapters alone"
    assert not any(path.is_dir() for path in models), "accelerate's shards of the whole model"
    model = trained("llama", "lora")
    model.load_adapter(str(tmp_path / "model" / "a"))
    for name, parameter in adapter_parameters(alone.model, "a").items():
        torch.testing.assert_close(dict(model.named_parameters())[name], parameter, rtol=1e-3, atol=1e-5)


def test_the_guide_runs(processes: Processes, base: str, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    text = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    classes = processes.run("guide", blocks=blocks, folder=str(tmp_path))
    assert classes[0] == classes[1] and classes[0][:2] == ["LlamaForCausalLM", "FSDPLlamaForCausalLM"]
    assert (tmp_path / "trained" / "adapter_config.json").exists()


def test_what_is_split_otherwise_is_refused(processes: Processes, base: str) -> None:
    processes.run("refused_splits", folder=base)
