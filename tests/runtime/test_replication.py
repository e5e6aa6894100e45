"""Copies of inputs for `Parallel`: all rows for the first child, then all for the second."""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from adapters.runtime.replication import batch_size, replicate

IDS = torch.arange(6).view(2, 3)


def test_rows_are_copied_child_by_child() -> None:
    (), kwargs = replicate((), {"input_ids": IDS, "labels": torch.tensor([0, 1])}, 3)
    assert torch.equal(kwargs["input_ids"], torch.cat([IDS] * 3))
    assert kwargs["labels"].tolist() == [0, 1] * 3


def test_what_has_no_rows_stays() -> None:
    cache = DynamicCache()
    others = {"use_cache": True, "scale": torch.tensor(2.0), "positions": torch.arange(5), "name": "x", "none": None}
    given = {"input_ids": IDS, "past_key_values": cache, "task_ids": torch.tensor([0, 1]), **others}
    _, kwargs = replicate((), given, 2)
    assert kwargs["past_key_values"] is cache and kwargs["task_ids"].tolist() == [0, 1]
    for name, value in others.items():
        assert kwargs[name] is value


def test_nested_values_and_positional_arguments() -> None:
    states = BaseModelOutput(last_hidden_state=torch.randn(2, 3, 4), hidden_states=(torch.randn(2, 3, 4),))
    args, kwargs = replicate((IDS, None, 7), {"encoder_outputs": states, "pair": [IDS, (IDS,)]}, 2)
    assert args[0].shape == (4, 3) and args[1:] == (None, 7)
    assert isinstance(kwargs["encoder_outputs"], BaseModelOutput)
    assert kwargs["encoder_outputs"].last_hidden_state.shape == kwargs["encoder_outputs"].hidden_states[0].shape
    assert kwargs["pair"][0].shape == kwargs["pair"][1][0].shape == (4, 3)
    assert states.last_hidden_state.shape[0] == 2


def test_the_batch_size_is_that_of_the_main_input() -> None:
    assert batch_size((), {"attention_mask": torch.ones(5, 3), "input_ids": IDS}) == 2
    assert batch_size((), {"inputs_embeds": torch.ones(4, 3, 2)}) == 4
    assert batch_size((IDS,), {}) == 2
    assert batch_size((), {"encoder_outputs": (torch.ones(3, 2, 2),)}) == 3
    assert batch_size((), {"output_attentions": True, "input_values": torch.ones(5, 9)}) == 5
    assert batch_size((), {"task_ids": torch.ones(5)}) is None
    assert batch_size((), {}) is None
    assert replicate((), {"use_cache": True}, 2) == ((), {"use_cache": True})
