"""Which models are measured? Random weights in the shapes that goals are stated for, and copies that share weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """A model and a batch.

    Args:
        name: How tables call it.
        make: Makes the model.
        rows, tokens: Shape of the batch.
        family: "bert" or "llama": decides how other libraries name its parts.
    """

    name: str
    make: Callable[[], PreTrainedModel]
    rows: int
    tokens: int
    family: str = "bert"

    def model(self) -> Any:
        """The model in evaluation mode; the same weights on every call."""
        torch.manual_seed(0)
        model = self.make().eval()
        with torch.no_grad():
            for norm in model.modules():
                if isinstance(norm, nn.LayerNorm):
                    norm.weight.uniform_(0.5, 1.5)
        return model

    def sharing(self, model: Any) -> Any:
        """Another model with the parameter tensors of `model`: equal addresses, so no luck in how memory lies.

        Built, not copied: Python reads attributes of copied objects more slowly.
        """
        return share_tensors(self.model(), model)

    def inputs(self, rows: int | None = None) -> Inputs:
        """A batch without padding, with the attention mask that tokenizers give."""
        ids = torch.randint(5, 100, (rows or self.rows, self.tokens), generator=torch.Generator().manual_seed(1))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def describe(self) -> dict[str, Any]:
        """The facts that belong in a result."""
        return {**_facts(self.make), "rows": self.rows, "tokens": self.tokens, "dtype": "float32"}


@cache
def _facts(make: Callable[[], PreTrainedModel]) -> dict[str, Any]:
    config = make().config
    return {n: getattr(config, n) for n in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")}


def share_tensors(model: Any, other: Any) -> Any:
    """`model`, after it got the very parameters and buffers of `other`, a model of the same shape."""
    for mine, theirs in zip(model.modules(), other.modules()):
        mine._parameters.update(theirs._parameters)
        mine._buffers.update(theirs._buffers)
    return model


def bert(width: int, layers: int, heads: int) -> Callable[[], PreTrainedModel]:
    """A BERT without dropout, so that training steps can be compared too."""
    facts: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": 1000,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    return lambda: BertModel(BertConfig(**facts))


def llama() -> PreTrainedModel:
    """A small Llama with grouped queries."""
    config = LlamaConfig(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=688,
        vocab_size=1000,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


TINY = Shape("tiny", bert(64, 12, 4), rows=1, tokens=8)
TWO_LAYERS = Shape("tiny (2 layers)", bert(64, 2, 4), rows=1, tokens=8)
WIDE = Shape("BERT width", bert(768, 2, 12), rows=2, tokens=128)
WIDE_4 = Shape("BERT width", bert(768, 4, 12), rows=2, tokens=128)
WIDE_12 = Shape("BERT-base", bert(768, 12, 12), rows=1, tokens=8)
LLAMA = Shape("small Llama", llama, rows=1, tokens=32, family="llama")
LLAMA_PROMPT = Shape("small Llama", llama, rows=1, tokens=8, family="llama")


def drawn(key: str, like: Tensor, scale: float = 0.1) -> Tensor:
    """Random numbers that depend on `key` only, so that two libraries get the same weights in two processes."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return scale * torch.randn(like.numel(), generator=generator).view(like.shape)


def fingerprint(output: Tensor) -> list[float]:
    """Some numbers by which outputs of two processes are compared."""
    return [round(float(value), 5) for value in output.detach().flatten()[:: max(1, output.numel() // 16)][:16]]
