"""Linear maps that read one vector of each row, as poolers do: adapters and blocks mean there what they do anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import IA3Config, LoRAConfig
from adapters.call import attended_mean
from adapters.composition import Average, BatchSplit, Fuse, MultiTask, Parallel, Route, Split, Stack
from adapters.composition.routing import balance_loss
from adapters.errors import SizeError
from tests.tiny import build, inputs, perturb

PLACE = "pooler.dense"
CONFIGS: Mapping[str, Any] = {
    "lora": LoRAConfig(places=PLACE),
    "gated": LoRAConfig(places=PLACE, use_gating=True),
    "dora": LoRAConfig(places=PLACE, use_dora=True),
    "ia3": IA3Config(places=PLACE),
    "ia3 of inputs": IA3Config(places=f"{PLACE}.in"),
}
BLOCKS: Mapping[str, Any] = {
    "alone": Stack("a"),
    "stack": Stack("a", "b"),
    "average": Average("a", "b"),
    "fuse": Fuse("a", "b"),
    "by token": Route("a", "b", by="token"),
    "by sequence": Route("a", "b", by="sequence"),
    "batch split": BatchSplit("a", "b", batch_sizes=[1, 3]),
    "parallel": Parallel("a", "b"),
    "tasks": MultiTask("a", "b"),
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("method", CONFIGS)
def test_a_vector_is_a_sequence_of_one_position(method: str, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the model itself keeps the dimension of positions."""
    model, given, setup = build("bert"), inputs("bert"), BLOCKS[block]
    for name in "ab":
        model.add_adapter(name, config=CONFIGS[method])
    if isinstance(setup, Fuse):
        model.add_adapter_fusion(setup)
    elif isinstance(setup, Route):
        model.add_adapter_routing(setup, {"balance": 0.1})
    perturb(model, "a", "b")
    if isinstance(setup, MultiTask):
        given["task_ids"] = torch.tensor([0, 1, 1, 0])
    plain = model(**inputs("bert")).pooler_output
    model.set_active_adapters(setup)
    found = model(**given).pooler_output
    pooler = model.pooler

    def of_sequences(hidden: Tensor) -> Tensor:
        return pooler.activation(pooler.dense(hidden[:, :1]))[:, 0]  # type: ignore[no-any-return]

    monkeypatch.setattr(pooler, "forward", of_sequences)
    torch.testing.assert_close(found, model(**given).pooler_output)
    assert found.shape[1:] == plain.shape[1:] and not torch.allclose(found[: len(plain)], plain)


def test_one_position_cannot_be_split() -> None:
    model = build("bert")
    for name in "ab":
        model.add_adapter(name, config=CONFIGS["lora"])
    model.set_active_adapters(Split("a", "b", splits=[3, 4]))
    with pytest.raises(SizeError, match="cover 7 positions, but the sequence has 1"):
        model(**inputs("bert"))


def test_means_of_more_dimensions_are_those_of_each_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """[B, S, H, n], as where a map reads every head: its mean over attended positions, and its loss."""
    mask = torch.tensor([[True, True, True], [True, False, True]])
    monkeypatch.setattr("adapters.call.attended", lambda rows, positions: mask)
    monkeypatch.setattr("adapters.composition.routing.attended", lambda rows, positions: mask)
    values = torch.randn(2, 3, 5, 4)
    apart = torch.stack([attended_mean(values[:, :, i]) for i in range(5)], 2)
    torch.testing.assert_close(attended_mean(values), apart)
    alike = values[:, :, :1].expand(-1, -1, 5, -1)
    torch.testing.assert_close(balance_loss(alike, 1), balance_loss(alike[:, :, 0], 1))
