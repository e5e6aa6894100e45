"""How are checkpoints of PEFT read, and written? One translator a type of PEFT (`registry.py`), both ways.

    adapter_config.json            {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"], ...}
    adapter_model.safetensors      base_model.model.<module path>.<tensor of the type> -> tensor

`options.py` reads and checks the config, `modules.py` finds the modules that are meant, `loading.py` and `saving.py` do
what all types have in common.
"""
