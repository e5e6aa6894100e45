"""A server mixes its batches anew for every call: is what was planned for old blocks given up, and only that?"""

from __future__ import annotations

import contextlib
import gc
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import AdapterSetup, BatchSplit, Stack
from adapters.errors import AdapterNameError
from adapters.runtime.programs import MOST_BLOCKS, MOST_NAMES
from tests.tiny import ROWS, build, checkpoint, infer, inputs, output, perturb

NAMES = [f"a{i}" for i in range(2 + MOST_BLOCKS // 4)]


@pytest.fixture
def model() -> Any:
    model = build("bert")
    for name in NAMES:
        model.add_adapter(name, config="lora[r=2]")
        perturb(model, name, seed=NAMES.index(name))
    return model


def blocks() -> list[BatchSplit]:
    """More blocks than are kept, each of two adapters."""
    sizes = range(1, ROWS)
    found = [BatchSplit(*pair, batch_sizes=[n, ROWS - n]) for pair in pairwise(NAMES) for n in sizes]
    found += [BatchSplit(b, a, batch_sizes=[n, ROWS - n]) for a, b in pairwise(NAMES) for n in sizes]
    assert len(found) > MOST_BLOCKS + 8
    return found


def kept(model: Any) -> int:
    return len(model._engine.programs._kept)


def test_what_is_kept_does_not_grow(model: Any) -> None:
    given, results = inputs("bert"), []
    for block in blocks():
        with AdapterSetup(block):
            results.append(infer(model, given))
    assert kept(model) <= MOST_BLOCKS + 2 + len(NAMES)  # and each adapter by itself
    gc.collect()
    assert len(model._engine.programs._built) <= MOST_BLOCKS + 2 + len(NAMES)
    for block, expected in zip(blocks(), results):
        with AdapterSetup(block):
            assert torch.equal(infer(model, given), expected)


def test_blocks_that_are_set_on_the_model_do_not_grow_either(model: Any) -> None:
    for block in blocks():
        model.set_active_adapters(block)
    assert kept(model) <= MOST_BLOCKS + 2 + len(NAMES)  # and each adapter by itself


def test_set_ups_of_one_name_do_not_grow_either(model: Any) -> None:
    for size in range(1, MOST_NAMES + 50):
        with AdapterSetup(BatchSplit("a0", None, batch_sizes=[size, 1])):
            pass
        with contextlib.suppress(AdapterNameError):
            model.set_active_adapters(f"unknown {size}")
        with AdapterSetup(f"unknown {size}"):
            pass
    assert kept(model) <= MOST_NAMES + 2


def test_what_is_in_force_is_never_given_up(model: Any) -> None:
    given = inputs("bert")
    static, outer = Stack("a0", "a1"), Stack("a1", "a0")
    model.set_active_adapters(static)
    expected = infer(model, given)
    with AdapterSetup(outer):
        inside = infer(model, given)
        for block in blocks():
            with AdapterSetup(block):
                infer(model, given)
        assert torch.equal(infer(model, given), inside)
    assert torch.equal(infer(model, given), expected)
    assert not torch.equal(inside, expected)


def test_single_adapters_are_all_kept(model: Any) -> None:
    programs = []
    for name in NAMES:
        model.set_active_adapters(name)
        programs.append(model._engine.programs.default)
    for block in blocks():
        with AdapterSetup(block):
            pass
    for name, program in zip(NAMES, programs):
        model.set_active_adapters(name)
        assert model._engine.programs.default is program


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_finds_its_block_again(model: Any, reentrant: bool) -> None:
    """Backward after the context was left, after many others, and after another adapter was added."""
    given = inputs("bert")

    def grads(checkpointed: bool) -> dict[str, Tensor]:
        model.zero_grad()
        if checkpointed:
            checkpoint(model.train(), reentrant=reentrant)
        with AdapterSetup(Stack("a0", "a1")):
            loss = output(model, given).square().sum()
        if checkpointed:
            model.eval()  # layers are checkpointed only in training
            for block in blocks():
                with AdapterSetup(block):
                    infer(model, given)
            model.set_active_adapters(None)
            model.add_adapter("new", config="lora[r=2]")
        loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".a0." in name or ".a1." in name or "word_embeddings" in name)
    plain, recomputed = grads(False), grads(True)
    assert plain.keys() == recomputed.keys() and any(".a1." in name for name in plain)
    for name, grad in plain.items():
        torch.testing.assert_close(recomputed[name], grad, msg=lambda text, name=name: f"{name}: {text}")
