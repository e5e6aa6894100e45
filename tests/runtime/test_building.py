"""What a config means as modules: unions whose members store something for all their sites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import CompacterConfig, ConfigUnion, LoRAConfig, PrefixTuningConfig, Stack, VBLoRAConfig, VeraConfig
from tests.tiny import adapter_parameters, build, infer, inputs, perturb

UNIONS = {
    "compacter and vera": (CompacterConfig(reduction_factor=4), VeraConfig(r=3)),
    "vera twice": (
        LoRAConfig(r=3, vera_d=0.1, vera_b=0.1, places=["attn.q"]),
        LoRAConfig(r=4, vera_d=0.1, vera_b=0.1, places=["attn.v"]),
    ),
    "vera and vblora": (VeraConfig(r=3), VBLoRAConfig(r=3, num_vectors=7, vector_length=8, places=["ffn.up"])),
    "compacter per layer": (
        CompacterConfig(reduction_factor=4, leave_out=[0]),
        CompacterConfig(reduction_factor=8, leave_out=[1]),
    ),
    "prefixes per layer": (
        PrefixTuningConfig(prefix_length=3, bottleneck_size=8, leave_out=[0]),
        PrefixTuningConfig(prefix_length=5, flat=True, leave_out=[1]),
    ),
}


@pytest.mark.parametrize("name", UNIONS)
def test_members_of_a_union_share_what_they_share_apart(name: str, tmp_path: Path) -> None:
    """As in the stack of its members, and as after a way through files."""
    model, given, members = build("bert"), inputs("bert"), UNIONS[name]
    model.add_adapter("union", config=ConfigUnion(*members))
    perturb(model, "union")
    model.set_active_adapters("union")
    output = infer(model, given)

    apart = build("bert")
    for i, member in enumerate(members):
        apart.add_adapter(f"member {i}", config=member)
    stored = adapter_parameters(model, "union")
    for i in range(len(members)):
        for key, parameter in adapter_parameters(apart, f"member {i}").items():
            shared = key.replace(f".member {i}.", f".union.{i}.")
            value = stored.pop(shared if shared in stored else key.replace(f".member {i}.", ".union."))
            parameter.data.copy_(value)
    assert not stored
    apart.set_active_adapters(Stack(*(f"member {i}" for i in range(len(members)))))
    assert torch.equal(infer(apart, given), output)

    model.save_adapter(str(tmp_path), "union")
    loaded: Any = build("bert")
    loaded.load_adapter(str(tmp_path), load_as="another", set_active=True)
    assert torch.equal(infer(loaded, given), output)
