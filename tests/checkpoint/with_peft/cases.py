"""Adapters of PEFT of every type, on every tiny model: what the tests of both directions enumerate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import torch

from tests.tiny import TINY_MODELS, build

LLAMA, BERT = ["q_proj", "v_proj", "down_proj"], ["query", "value", "output.dense"]
TARGETS: dict[str, list[str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), BERT),
    "distilbert": ["q_lin", "v_lin", "lin2"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
    **{key: ["q", "v", "wo"] for key in ("t5", "t5-gated", "mt5")},
    **{key: ["q_proj", "v_proj", "fc2"] for key in ("bart", "mbart")},
    "vit": ["q_proj", "v_proj", "fc2"],
}
NORMS = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), r".*layer\.\d.*LayerNorm"),
    "distilbert": r".*(sa|output)_layer_norm",
    "gpt2": r".*ln_[12]",
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), r".*(input|post_attention)_layernorm"),
    **dict.fromkeys(("t5", "t5-gated", "mt5"), r".*layer_norm"),
    **dict.fromkeys(("bart", "mbart"), r".*layer_norm"),
    "vit": r".*layernorm_(before|after)",
}
TABLES = {
    **{key: ["word_embeddings"] for key in ("bert", "roberta", "xlm-roberta", "electra", "distilbert")},
    "gpt2": ["wte", "wpe"],
    **{key: ["embed_tokens"] for key in ("llama", "mistral", "qwen2", "qwen3")},
    **{key: ["embed_tokens"] for key in ("t5", "t5-gated", "mt5", "bart", "mbart")},
}
"""Embeddings of tokens, and of positions where these are looked up in the same way."""
TOKENS = [3, 5, 7, 11, 12, 20]
Make = Callable[[str], Any]
CASES: dict[str, Make] = {
    "lora": lambda name: peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS[name]),
    "lora, odd": lambda name: peft.LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS[name]),
    "rslora": lambda name: peft.LoraConfig(r=3, lora_alpha=8, use_rslora=True, target_modules=TARGETS[name]),
    "patterns": lambda name: peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=TARGETS[name],
        rank_pattern={TARGETS[name][0]: 2, rf".*1.*{TARGETS[name][-1]}": 5},
        alpha_pattern={TARGETS[name][-1]: 3},
    ),
    "one layer": lambda name: peft.LoraConfig(
        r=4, target_modules=TARGETS[name], layers_to_transform=[1], layers_pattern=["layers", "layer", "h", "block"]
    ),
    "all-linear": lambda name: peft.LoraConfig(r=2, target_modules="all-linear"),
    "embeddings": lambda name: peft.LoraConfig(r=4, lora_alpha=7, target_modules=[*TARGETS[name], *TABLES[name]]),
    "embeddings, dora": lambda name: peft.LoraConfig(r=4, lora_alpha=7, use_dora=True, target_modules=TABLES[name]),
    "lora and tokens": lambda name: peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=TARGETS[name], trainable_token_indices=TOKENS
    ),
    "tokens": lambda name: peft.TrainableTokensConfig(token_indices=TOKENS),
    "pissa": lambda name: peft.LoraConfig(r=2, init_lora_weights="pissa", target_modules=TARGETS[name]),
    "olora": lambda name: peft.LoraConfig(r=2, init_lora_weights="olora", target_modules=TARGETS[name]),
    "mica": lambda name: peft.LoraConfig(r=2, init_lora_weights="mica", target_modules=TARGETS[name]),
    "dora": lambda name: peft.LoraConfig(r=4, lora_alpha=12, use_dora=True, target_modules=TARGETS[name]),
    "biases": lambda name: peft.LoraConfig(r=4, bias="lora_only", target_modules=TARGETS[name]),
    "all biases": lambda name: peft.LoraConfig(r=4, bias="all", target_modules=TARGETS[name]),
    "lora_bias": lambda name: peft.LoraConfig(r=4, lora_alpha=12, lora_bias=True, target_modules=TARGETS[name]),
    "ia3": lambda name: peft.IA3Config(target_modules=TARGETS[name], feedforward_modules=TARGETS[name][-1:]),
    "loha": lambda name: peft.LoHaConfig(
        r=3, alpha=5, target_modules=TARGETS[name], rank_pattern={TARGETS[name][0]: 2}
    ),
    "lokr": lambda name: peft.LoKrConfig(
        r=2, alpha=3, target_modules=TARGETS[name], alpha_pattern={TARGETS[name][0]: 2}
    ),
    "lokr, both": lambda name: peft.LoKrConfig(
        r=1, alpha=3, decompose_both=True, decompose_factor=4, target_modules=TARGETS[name]
    ),
    "oft": lambda name: peft.OFTConfig(oft_block_size=8, target_modules=TARGETS[name]),
    "oft, inverse": lambda name: peft.OFTConfig(
        oft_block_size=4, use_cayley_neumann=False, block_share=True, target_modules=TARGETS[name]
    ),
    "oft, constrained": lambda name: peft.OFTConfig(
        oft_block_size=4, coft=True, eps=0.5, use_cayley_neumann=False, target_modules=TARGETS[name]
    ),
    "adalora": lambda name: peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, total_step=10, target_modules=TARGETS[name]
    ),
    "vera": lambda name: peft.VeraConfig(r=4, target_modules=TARGETS[name]),
    "vera, drawn": lambda name: peft.VeraConfig(
        r=4, target_modules=TARGETS[name], save_projection=False, projection_prng_key=7
    ),
    "randlora": lambda name: peft.RandLoraConfig(r=5, randlora_alpha=7, target_modules=TARGETS[name]),
    "vblora": lambda name: peft.VBLoRAConfig(r=3, num_vectors=7, vector_length=8, target_modules=TARGETS[name]),
    "vblora, best": lambda name: peft.VBLoRAConfig(
        r=3, num_vectors=7, vector_length=8, save_only_topk_weights=True, target_modules=TARGETS[name]
    ),
    "ln_tuning": lambda name: peft.LNTuningConfig(target_modules=NORMS[name]),
}
EXACT = ("lora", "lora, odd", "rslora", "patterns", "one layer", "all-linear", "mica", "embeddings")
"""Cases of which not a bit differs."""

LINEAR_ALONE = ("olora", "loha", "lokr", "lokr, both", "oft", "oft, inverse", "oft, constrained")
NOT_SHARED = {*((case, "gpt2") for case in LINEAR_ALONE), ("all biases", "vit")}
NOT_SHARED |= {(case, "vit") for case in ("embeddings", "embeddings, dora", "lora and tokens", "tokens")}  # no tokens
"""What PEFT has for nn.Linear alone, and the bias of a convolution."""
PAIRS = [(case, name) for case in CASES for name in TINY_MODELS if (case, name) not in NOT_SHARED]


def theirs(case: str, name: str, task: str = "base", **changes: Any) -> Any:
    """A model of PEFT with an adapter that does something; always the same for the same arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = CASES[case](name)
        vars(config).update(changes)
        model = peft.get_peft_model(build(name, task, adapted=False), config).eval()
        moved(model)
    return model


@torch.no_grad()
def moved(model: Any) -> None:
    """Move what trains away from how it starts, a little."""
    for key, parameter in model.named_parameters():
        if parameter.requires_grad and "lambda" not in key:
            parameter.add_(0.1 * torch.randn_like(parameter))
        elif parameter.requires_grad:
            parameter.copy_(torch.randn_like(parameter))
