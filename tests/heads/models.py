"""Tiny models with flexible heads, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig

from adapters import auto
from adapters.heads.kinds import MODEL_KINDS

WIDTH, VOCAB, PAD, EOS = 32, 64, 1, 2

ENCODER: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": VOCAB,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": EOS,
}
DECODER = {**ENCODER, "num_key_value_heads": 2, "head_dim": 8}
BART: dict[str, Any] = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "vocab_size": VOCAB,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "decoder_start_token_id": EOS,
    "forced_eos_token_id": None,
}
T5: dict[str, Any] = {
    "d_model": WIDTH,
    "num_layers": 2,
    "num_heads": 4,
    "d_kv": 8,
    "d_ff": 40,
    "vocab_size": VOCAB,
    "relative_attention_num_buckets": 8,
    "pad_token_id": 0,
    "eos_token_id": EOS,
    "decoder_start_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "xlm-roberta": ENCODER,
    "distilbert": {
        "dim": WIDTH,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 40,
        "vocab_size": VOCAB,
        "max_position_embeddings": 40,
        "pad_token_id": PAD,
    },
    "electra": {**ENCODER, "embedding_size": 16},
    "gpt2": {
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 40,
        "vocab_size": VOCAB,
        "pad_token_id": PAD,
        "bos_token_id": 0,
        "eos_token_id": EOS,
    },
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "qwen3": DECODER,
    "t5": T5,
    "mt5": T5,
    "bart": BART,
    "mbart": BART,
    "vit": {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "image_size": 16,
        "patch_size": 8,
    },
}
SOUNDS: dict[str, dict[str, Any]] = {
    "wav2vec2": {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "conv_dim": [16, 16],
        "conv_kernel": [10, 3],
        "conv_stride": [5, 2],
        "num_conv_pos_embeddings": 4,
        "apply_spec_augment": False,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": VOCAB,
    }
}
"""Types that hear."""
ADD = {
    "classification": ("add_classification_head", {"num_labels": 3}),
    "multilabel_classification": ("add_classification_head", {"num_labels": 3, "multilabel": True}),
    "image_classification": ("add_image_classification_head", {"num_labels": 3}),
    "multiple_choice": ("add_multiple_choice_head", {"num_choices": 2}),
    "tagging": ("add_tagging_head", {"num_labels": 3}),
    "question_answering": ("add_qa_head", {}),
    "dependency_parsing": ("add_dependency_parsing_head", {"num_labels": 3}),
    "masked_lm": ("add_masked_lm_head", {}),
    "causal_lm": ("add_causal_lm_head", {}),
    "seq2seq_lm": ("add_seq2seq_lm_head", {}),
    "ctc": ("add_ctc_head", {}),
}
PAIRS = [(kind, head) for kind in CONFIGS for head in MODEL_KINDS[kind].head_types]
OF_TYPE = {head_type: kind for kind, head_type in reversed(PAIRS)} | {"ctc": "wav2vec2"}
"""Head type -> the first model type that has it."""


def tiny_config(model_type: str, **kwargs: Any) -> Any:
    return AutoConfig.for_model(model_type, **{**{**CONFIGS, **SOUNDS}[model_type], **kwargs})


def tiny(model_type: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return auto.AutoAdapterModel.from_config(tiny_config(model_type, **kwargs)).eval()  # type: ignore[no-untyped-call]


def add_head(model: Any, head_type: str, name: str = "h", **kwargs: Any) -> Any:
    method, options = ADD[head_type]
    getattr(model, method)(name, **{**options, **kwargs})
    model.eval()
    return model.heads[name]


def inputs_for(model: Any, head_type: str = "", rows: int = 2) -> dict[str, torch.Tensor]:
    """Inputs of 7 positions; every second row is padded on the right by two."""
    draw = torch.Generator().manual_seed(1)
    if model.config.model_type == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=draw)}
    if model.config.model_type in SOUNDS:
        return {"input_values": torch.randn(rows, 400, generator=draw)}
    ids = torch.randint(5, VOCAB, (rows, 7), generator=draw)
    mask = torch.ones_like(ids)
    ids[:, 6] = EOS
    ids[1::2, 4] = EOS
    ids[1::2, 5:] = model.config.pad_token_id
    mask[1::2, 5:] = 0
    if head_type == "multiple_choice":
        ids, mask = torch.stack([ids, ids.flip(0)], dim=1), torch.stack([mask, mask.flip(0)], dim=1)
    more = {"word_starts": torch.tensor([[1, 2, 4, 0, 0], [1, 3, 0, 0, 0]] * (rows // 2))}
    return {
        "input_ids": ids,
        "attention_mask": mask,
        **(more if head_type == "dependency_parsing" else {}),
    }


def labels_for(head_type: str, rows: int = 2) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    if head_type in ("classification", "image_classification", "multiple_choice"):
        return {"labels": torch.tensor([1, 0] * (rows // 2))}
    if head_type == "multilabel_classification":
        return {"labels": torch.tensor([[1, 0, 1], [0, 0, 1]] * (rows // 2))}
    if head_type == "ctc":
        return {"labels": torch.tensor([[5, 6], [7, -100]] * (rows // 2))}
    if head_type == "tagging":
        return {"labels": torch.randint(0, 3, (rows, 7), generator=draw)}
    if head_type == "question_answering":
        return {
            "start_positions": torch.tensor([1, 3] * (rows // 2)),
            "end_positions": torch.tensor([2, 99] * (rows // 2)),
        }
    if head_type == "dependency_parsing":
        arcs = torch.tensor([[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]] * (rows // 2))
        return {"labels_arcs": arcs, "labels_rels": arcs + 1}
    return {"labels": torch.randint(0, VOCAB, (rows, 7), generator=draw)}
