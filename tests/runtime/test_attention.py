"""Prefixes in the attention function: masks of every form, and models that have nothing to do with adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adapters import AdapterSetup
from adapters.runtime import attention
from tests.contract.cases import CONFIGS
from tests.tiny import build, infer, inputs, perturb

pytestmark = pytest.mark.versions

ROWS, HEADS, QUERIES, KEYS, DIM, PREFIX = 2, 2, 5, 5, 4, 3


def test_models_without_adapters_pass_by() -> None:
    """Prefix tuning anywhere routes all models through one dispatch; others are untouched, bit for bit."""
    plain, given = build("llama", adapted=False), inputs("llama")
    expected = infer(plain, given)
    model = build("bert")
    model.add_adapter("a", config=CONFIGS["prefix_tuning"], set_active=True)
    perturb(model, "a")
    infer(model, inputs("bert"))
    assert torch.equal(infer(plain, given), expected)
    assert torch.equal(infer(build("gpt2", adapted=False), inputs("gpt2")), infer(build("gpt2"), inputs("gpt2")))


def test_a_function_of_the_users_own() -> None:
    """An attention that somebody registered is wrapped like the built-in ones."""
    called: list[Any] = []

    def own(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        called.append(key.shape[2])
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e9) if mask.dtype == torch.bool else scores + mask
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("mine", own)
    try:
        model, given = build("bert", attn_implementation="eager"), inputs("bert")
        model.add_adapter("a", config=CONFIGS["prefix_tuning"], set_active=True)
        perturb(model, "a")
        expected = infer(model, given)
        mask = torch.zeros(4, 1, 1, 7).masked_fill(~given["attention_mask"].bool()[:, None, None], -1e9)
        model.set_attn_implementation("mine")
        found = infer(model, {**given, "attention_mask": mask})
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert called == [7 + 3, 7 + 3]
    finally:
        type(ALL_ATTENTION_FUNCTIONS)._global_mapping.pop("mine", None)


def test_a_new_implementation_is_picked_up() -> None:
    model, given = build("gpt2", attn_implementation="eager"), inputs("gpt2", padded=False)
    model.add_adapter("a", config=CONFIGS["prefix_tuning"])
    perturb(model, "a")
    results = []
    for implementation in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with AdapterSetup("a"):
            results.append(infer(model, given))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
@pytest.mark.parametrize("uneven", [False, True])
def test_columns_for_the_prefix(dtype: torch.dtype, uneven: bool) -> None:
    allowed = torch.rand(ROWS, 1, QUERIES, KEYS) > 0.3
    mask = allowed if dtype == torch.bool else torch.zeros(allowed.shape).masked_fill(~allowed, -1e4)
    attended = torch.tensor([[False, True, True], [True, True, True]]) if uneven else None
    extended = attention._extend_mask(mask, PREFIX, attended)
    assert extended.dtype == dtype and extended.shape == (ROWS, 1, QUERIES, PREFIX + KEYS)
    assert torch.equal(extended[..., PREFIX:], mask)
    open_ = extended[..., :PREFIX] if dtype == torch.bool else extended[..., :PREFIX] == 0
    assert open_[1].all()
    assert torch.equal(open_[0, 0, 0], attended[0] if attended is not None else torch.ones(PREFIX, dtype=torch.bool))


def test_flags_per_key_of_flash_attention() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert torch.equal(attention._extend_mask(mask, 2, None), torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_block_masks_of_flex_attention() -> None:
    """The prefix is visible to all queries; what the model's own mask says is shifted behind it."""
    size = 128
    causal = create_block_mask(lambda b, h, q, k: k <= q, ROWS, None, size, size, device="cpu")
    extended = attention._extend_block_mask(causal, PREFIX, size, size)
    q, k, v = (torch.randn(ROWS, HEADS, n, 16) for n in (size, size + PREFIX, size + PREFIX))
    found = flex_attention(q, k, v, block_mask=extended)
    mask = F.pad(torch.ones(size, size, dtype=torch.bool).tril(), (PREFIX, 0), value=True)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, mask), atol=1e-5, rtol=1e-4)
    assert attention._extend_block_mask(None, PREFIX, size, size) is None


def test_installing_twice_wraps_once() -> None:
    before = attention.AttentionInterface.get_interface
    attention.install()
    attention.install()
    assert attention.AttentionInterface.get_interface is before or before is attention._get_interface
    assert attention._get_interface is not attention._get_dispatch
