"""One random model per architecture, small enough to build in every test: hidden size 32, two layers, no downloads.

`TINY_MODELS` is what the contract tests enumerate. Add an architecture here and they run on it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig

import adapters
from adapters.composition.registry import BLOCK_MODULES
from adapters.methods import METHODS

WIDTH, HEADS, VOCAB, PAD, EOS, LABELS = 32, 4, 64, 1, 2, 3
ROWS, LENGTH = 4, 7

ENCODER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": 40,
    "vocab_size": VOCAB,
    "max_position_embeddings": 48,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.1,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": EOS,
}
GROUPED_QUERIES: dict[str, Any] = {**ENCODER, "num_key_value_heads": 2, "head_dim": 8}
BART: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "vocab_size": VOCAB,
    "max_position_embeddings": 48,
    "dropout": 0.0,
    "init_std": 0.1,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "decoder_start_token_id": EOS,
    "forced_eos_token_id": None,
}
T5: dict[str, Any] = {
    "d_model": WIDTH,
    "num_layers": 2,
    "num_heads": HEADS,
    "d_kv": 8,
    "d_ff": 40,
    "vocab_size": VOCAB,
    "dropout_rate": 0.0,
    "relative_attention_num_buckets": 8,
    "feed_forward_proj": "relu",
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
}
GATED: dict[str, Any] = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


@dataclass(frozen=True)
class Tiny:
    """One tiny model.

    Args:
        model_type: `config.model_type`.
        kind: "encoder", "decoder", "encoder-decoder" or "image".
        options: Config values.
        lm_options: Further config values that make it a language model that generates; None where it has none.
    """

    model_type: str
    kind: str
    options: Mapping[str, Any]
    lm_options: Mapping[str, Any] | None = field(default_factory=dict)


AS_DECODER = {"is_decoder": True}
TINY_MODELS: dict[str, Tiny] = {
    "bert": Tiny("bert", "encoder", ENCODER, AS_DECODER),
    "roberta": Tiny("roberta", "encoder", ENCODER, AS_DECODER),
    "xlm-roberta": Tiny("xlm-roberta", "encoder", ENCODER, AS_DECODER),
    "distilbert": Tiny(
        "distilbert",
        "encoder",
        {
            "dim": WIDTH,
            "n_layers": 2,
            "n_heads": HEADS,
            "hidden_dim": 40,
            "vocab_size": VOCAB,
            "max_position_embeddings": 48,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
            "initializer_range": 0.1,
            "pad_token_id": PAD,
        },
        None,
    ),
    "electra": Tiny("electra", "encoder", {**ENCODER, "embedding_size": 16}, AS_DECODER),
    "gpt2": Tiny(
        "gpt2",
        "decoder",
        {
            "n_embd": WIDTH,
            "n_layer": 2,
            "n_head": HEADS,
            "n_inner": 40,
            "n_positions": 48,
            "vocab_size": VOCAB,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "initializer_range": 0.1,
            "pad_token_id": PAD,
            "bos_token_id": 0,
            "eos_token_id": EOS,
        },
    ),
    "llama": Tiny("llama", "decoder", GROUPED_QUERIES),
    "mistral": Tiny("mistral", "decoder", GROUPED_QUERIES),
    "qwen2": Tiny("qwen2", "decoder", {**ENCODER, "num_key_value_heads": 2}),
    "qwen3": Tiny("qwen3", "decoder", {**GROUPED_QUERIES, "head_dim": 16}),
    "t5": Tiny("t5", "encoder-decoder", T5),
    "t5-gated": Tiny("t5", "encoder-decoder", GATED),
    "mt5": Tiny("mt5", "encoder-decoder", GATED),
    "bart": Tiny("bart", "encoder-decoder", BART),
    "mbart": Tiny("mbart", "encoder-decoder", BART),
    "vit": Tiny(
        "vit",
        "image",
        {
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "intermediate_size": 40,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.1,
            "image_size": 16,
            "patch_size": 8,
        },
        None,
    ),
}
LANGUAGE_MODELS = [name for name, tiny in TINY_MODELS.items() if tiny.lm_options is not None]

AUTO_CLASSES = {
    "base": "AutoModel",
    "classification": "AutoModelForSequenceClassification",
    "image classification": "AutoModelForImageClassification",
    "masked lm": "AutoModelForMaskedLM",
    "causal lm": "AutoModelForCausalLM",
    "seq2seq lm": "AutoModelForSeq2SeqLM",
}


def config(name: str, **changes: Any) -> Any:
    """The config of a tiny model."""
    tiny = TINY_MODELS[name]
    return AutoConfig.for_model(tiny.model_type, **{**tiny.options, "num_labels": LABELS, **changes})


def task_of(name: str, task: str) -> str:
    """`task`, where "lm" and "classification" mean what this architecture has of them."""
    kind = TINY_MODELS[name].kind
    if task == "lm":
        return "seq2seq lm" if kind == "encoder-decoder" else "causal lm"
    if task == "classification" and kind == "image":
        return "image classification"
    return task


def build(name: str, task: str = "base", adapted: bool = True, **changes: Any) -> Any:
    """A tiny model in evaluation mode: always the same weights for the same arguments, no bias or norm trivial.

    Args:
        name: Key of `TINY_MODELS`.
        task: Key of `AUTO_CLASSES`, or "lm".
        adapted: Whether `adapters.init` has been called on it.
        changes: Config values.
    """
    if task == "lm":
        changes = {**(TINY_MODELS[name].lm_options or {}), **changes}
    model = copy.deepcopy(_model(name, task_of(name, task), tuple(sorted(changes.items()))))
    return adapters.init(model) if adapted else model


@cache
def _model(name: str, task: str, changes: tuple[tuple[str, Any], ...]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, AUTO_CLASSES[task]).from_config(config(name, **dict(changes)))
        return randomised(model)


@torch.no_grad()
def randomised(model: Any) -> Any:
    """`model` in evaluation mode with biases, norms and factors that are not 0 or 1 everywhere."""
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def inputs(name: str, task: str = "base", rows: int = ROWS, length: int = LENGTH, padded: bool = True) -> Any:
    """Inputs of a tiny model: rows of different length, padded left for decoders and right for others; no labels."""
    generator = torch.Generator().manual_seed(1)
    kind = TINY_MODELS[name].kind
    if kind == "image":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    left = kind == "decoder" or task in ("lm", "causal lm")
    if kind == "encoder-decoder":
        left = False
    ids = torch.randint(3, VOCAB, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        for row in range(rows):
            count = row % 3
            part = slice(0, count) if left else slice(length - count, length)
            ids[row, part], mask[row, part] = PAD, 0
    result = {"input_ids": ids, "attention_mask": mask}
    if kind == "encoder-decoder":
        if task == "classification":
            result["input_ids"][:, 3:] = result["input_ids"][:, 3:].masked_fill(mask[:, 3:].bool(), 4)
            last = mask.sum(1) - 1
            result["input_ids"][torch.arange(rows), last] = EOS
        else:
            result["decoder_input_ids"] = torch.randint(3, VOCAB, (rows, length - 2), generator=generator)
    return result


def labels(name: str, task: str, rows: int = ROWS, length: int = LENGTH) -> Tensor:
    """Labels that go with `inputs`."""
    generator = torch.Generator().manual_seed(2)
    if task_of(name, task).endswith("classification"):
        return torch.randint(LABELS, (rows,), generator=generator)
    if TINY_MODELS[name].kind == "encoder-decoder":
        length -= 2
    return torch.randint(3, VOCAB, (rows, length), generator=generator)


def output(model: Any, given: Mapping[str, Any], **kwargs: Any) -> Tensor:
    """The main output of a call: logits, or the last hidden state."""
    result = model(**given, **kwargs)
    return result.logits if "logits" in result else result.last_hidden_state  # type: ignore[no-any-return]


@torch.no_grad()
def infer(model: Any, given: Mapping[str, Any], **kwargs: Any) -> Tensor:
    """The main output of a call without gradients."""
    return output(model, given, **kwargs)


CONTAINERS = {kind.container() for kind in BLOCK_MODULES}.union(
    *({m.container.split(".")[-1], m.shared_container.split(".")[-1]} - {""} for m in METHODS)
)
"""Names of the modules that hold adapters by name."""


def adapter_parameters(model: Any, *names: str) -> dict[str, torch.nn.Parameter]:
    """The parameters of adapters or fusions by name, found by the names they have in the model."""
    return {key: p for key, p in model.named_parameters() if owner(key) in names}


def owner(key: str) -> str | None:
    """The adapter or fusion that a tensor belongs to, None for the base model's own."""
    parts = key.split(".")
    return next((name for container, name in pairwise(parts) if container in CONTAINERS), None)


@torch.no_grad()
def perturb(model: Any, *names: str, scale: float = 0.3, seed: int = 0) -> None:
    """Move adapters away from how they start (where many of them do nothing)."""
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        found = adapter_parameters(model, name)
        assert found, f"no parameters of {name}"
        for parameter in found.values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))


def hooks(model: Any) -> list[str]:
    """Every trace that hooks leave in a model: names of modules and of the dictionaries that are not empty."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found = [f"{name}.{kind}" for name, module in model.named_modules() for kind in kinds if getattr(module, kind)]
    return found + [f"{name}.forward" for name, module in model.named_modules() if "forward" in vars(module)]


def checkpoint(model: Any, enable: bool = True, reentrant: bool = False) -> None:
    """Switch gradient checkpointing on or off, under the name that this version of transformers has for it."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enable:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": reentrant})
    else:
        getattr(model, f"{name}_checkpointing_disable")()
    flags = {module.gradient_checkpointing for module in model.modules() if hasattr(module, "gradient_checkpointing")}
    assert enable in flags
