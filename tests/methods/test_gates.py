"""Gates: padding is left out of their mean, but for adapters whose file was written before that."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adapters.call
from adapters import AdapterConfig
from adapters.call import CALL, Call
from adapters.methods.base import gate
from adapters.methods.presets import config_from_dict
from tests.tiny import build, infer, inputs, perturb

GATED = ("lora[use_gating=True]", "seq_bn[use_gating=True]", "prefix_tuning[use_gating=True]", "loha[use_gating=True]")


@pytest.fixture
def padding(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    monkeypatch.setattr(adapters.call, "attended", lambda rows, positions: mask)
    monkeypatch.setattr(CALL, "now", Call())
    return mask


def test_the_mean_is_over_attended_positions(padding: Tensor) -> None:
    linear, x = nn.Linear(8, 2), torch.randn(3, 4, 8)
    opened = torch.sigmoid(linear(x))
    expected = torch.stack([row[own].mean(0) for row, own in zip(opened, padding)])
    torch.testing.assert_close(gate(linear, x, True), expected[:, None])
    torch.testing.assert_close(gate(linear, x, False), opened.mean(1, keepdim=True))


def test_a_row_does_not_depend_on_its_padding(padding: Tensor) -> None:
    linear, x = nn.Linear(8, 1), torch.randn(3, 4, 8)
    other = torch.where(padding[..., None], x, torch.randn_like(x))
    torch.testing.assert_close(gate(linear, x, True), gate(linear, other, True))
    assert not torch.allclose(gate(linear, x, False), gate(linear, other, False))


@pytest.mark.parametrize("text", GATED)
def test_new_configs_say_so_and_old_files_keep_their_mean(text: str) -> None:
    config: Any = AdapterConfig.load(text)
    written = config.to_dict()
    assert written["gate_attended"] is True
    assert config_from_dict(written) == config
    old = copy.copy(written)
    del old["gate_attended"]
    read: Any = config_from_dict(old)
    assert read.gate_attended is False
    assert read.to_dict() == old
    assert config_from_dict(read.to_dict()).gate_attended is False


@pytest.mark.parametrize("name", ["lora", "seq_bn", "prefix_tuning", "ia3"])
def test_nothing_is_written_where_there_is_no_gate(name: str) -> None:
    config: Any = AdapterConfig.load(name)
    assert "gate_attended" not in config.to_dict()
    assert config_from_dict(config.to_dict()).replace(use_gating=True).gate_attended is True


def test_unions_read_and_write_it_too() -> None:
    config: Any = AdapterConfig.load("unipelt")
    members = config.to_dict()["configs"]
    assert all(member["gate_attended"] for member in members)
    for member in members:
        del member["gate_attended"]
    read: Any = config_from_dict({"architecture": "union", "configs": members})
    assert [member.gate_attended for member in read.configs] == [False] * 3


@pytest.mark.parametrize("task", ["base", "lm"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart"])
@pytest.mark.parametrize("config", ["unipelt", *GATED])
def test_a_row_does_not_depend_on_its_batch(config: str, name: str, task: str) -> None:
    """Rows of a padded batch are what they are alone, without any padding."""
    model, given = build(name, task), inputs(name, task)
    model.add_adapter("a", config=config, set_active=True)
    perturb(model, "a")
    together = infer(model, given)
    for row in range(len(together)):
        kept = given["attention_mask"][row].bool()
        alone = {key: value[row : row + 1] for key, value in given.items()}
        for key in ("input_ids", "attention_mask"):
            alone[key] = alone[key][:, kept]
        left = name in ("gpt2", "llama") or (task == "lm" and name == "bert")
        if left:  # positions are counted from the first token that is attended to
            alone["position_ids"] = torch.arange(len(kept))[kept][None]
        if name in ("t5", "bart"):
            kept = torch.ones(together.shape[1], dtype=torch.bool)
        torch.testing.assert_close(together[row, kept], infer(model, alone)[0], atol=2e-5, rtol=1e-4)
