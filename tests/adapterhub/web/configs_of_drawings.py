"""What drawings are tested with: every named config, and some that no name stands for."""

from typing import Any

from adapterhub.facts.configs import aliases, named

NAMED: dict[str, dict[str, Any]] = {name: dict(config) for name, config in named().items()}
NAMED |= {alias: NAMED[name] for alias, name in aliases().items()}
LORA = NAMED["lora"]
OTHERS: dict[str, dict[str, Any]] = {
    "leave_out": {**NAMED["double_seq_bn"], "leave_out": [0, 1, 2, 3, 11]},
    "per_layer": {**NAMED["seq_bn"], "reduction_factor": {"0": 4, "default": 8}},
    "lora_everywhere": {**LORA, "intermediate_lora": True, "output_lora": True, "attn_matrices": ["q", "k", "v"]},
    "reft_some_layers": {**NAMED["loreft"], "layers": [2, 5, 8], "suffix_positions": 2},
    "peft_lora": {"peft_type": "LORA", "r": 16, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]},
    "peft_ia3": {"peft_type": "IA3", "target_modules": ["key", "value", "output.dense"]},
    "peft_prefix_tuning": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20},
    "peft_prompt_tuning": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 8},
    "placed": {**LORA, "places": ["0-3:attn.o", "ffn.*"]},
    "inward": {**NAMED["ia3"], "places": ["attn.k", "ffn.down.in"]},
    "by_path": {**LORA, "places": ["encoder.layer.*.attention.self.query"]},
    "unknown": {"architecture": "of_tomorrow"},
}
