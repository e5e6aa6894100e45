"""`target_parameters`: LoRA of experts that are packed into one parameter, in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import adapters
from adapters.checkpoint.tensors import read_safetensors
from adapters.errors import CheckpointError, UnsupportedError
from tests.checkpoint.with_peft.cases import moved
from tests.tiny import perturb

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    # PEFT says so of patterns for parameters, and heeds them
    pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*alpha_pattern keys did not match:RuntimeWarning"),
]
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24}
MODELS = {
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=4),
    "qwen3_moe": transformers.Qwen3MoeConfig(**SIZES, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2),
    "gpt_oss": transformers.GptOssConfig(**SIZES, num_local_experts=4),  # stores [E, I, O]
}
PARAMETERS = {
    "both": ["experts.gate_up_proj", "experts.down_proj"],
    "one": ["experts.down_proj"],
}


def plain(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(MODELS[name]).eval()


def theirs(name: str, parameters: list[str], **changes: Any) -> Any:
    options: dict[str, Any] = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj"], "target_parameters": parameters}
    model = peft.get_peft_model(plain(name), peft.LoraConfig(**{**options, **changes})).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        moved(model)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.arange(24).view(2, 12) % 64
    return model(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("name", MODELS)
def test_in_and_out(name: str, parameters: str, tmp_path: Path) -> None:
    other = theirs(name, PARAMETERS[parameters], rank_pattern={"experts.down_proj": 2})
    want = logits(other)
    other.save_pretrained(tmp_path / "in")
    model = plain(name)
    base = logits(model)
    adapters.init(model)
    model.load_adapter(tmp_path / "in", set_active=True)
    torch.testing.assert_close(logits(model), want, atol=2e-5, rtol=2e-4)
    assert not torch.allclose(want, base, atol=1e-3)
    model.save_adapter(tmp_path / "out", "in", format="peft")
    again = peft.PeftModel.from_pretrained(plain(name), tmp_path / "out").eval()
    torch.testing.assert_close(logits(again), want, atol=2e-5, rtol=2e-4)
    first, second = (read_safetensors(tmp_path / f / "adapter_model.safetensors") for f in ("in", "out"))
    assert first.keys() == second.keys() and all(torch.equal(t, second[key]) for key, t in first.items())


def test_of_several_ranks_and_layers(tmp_path: Path) -> None:
    model = plain("mixtral")
    adapters.init(model)
    union = adapters.ConfigUnion(
        adapters.LoRAConfig(r=2, alpha=5, places=["0:ffn.down", "attn.v"]),
        adapters.LoRAConfig(r=4, alpha=3, places=["1:ffn.down", "ffn.up.whole"]),
    )
    model.add_adapter("a", config=union, set_active=True)
    perturb(model, "a")
    model.save_adapter(tmp_path / "a", "a", format="peft")
    again = peft.PeftModel.from_pretrained(plain("mixtral"), tmp_path / "a").eval()
    torch.testing.assert_close(logits(again), logits(model), atol=2e-5, rtol=2e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    theirs("mixtral", PARAMETERS["both"]).save_pretrained(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    saved = json.loads(file.read_text())
    model = plain("mixtral")
    adapters.init(model)
    for parameters, said in (
        (["experts.down_proj"], "tensors for 2 parameters of .*its config means .*down_proj"),
        (["experts.nothing"], "no such module"),
    ):
        file.write_text(json.dumps({**saved, "target_parameters": parameters}))
        with pytest.raises(CheckpointError, match=f"(?s){said}"):
            model.load_adapter(tmp_path / "a")
    file.write_text(json.dumps({**saved, "r": 2}))
    with pytest.raises(CheckpointError, match=r"is \(3, 32\), but its config and this model need \(2, 32\)"):
        model.load_adapter(tmp_path / "a")
    assert not model.has_adapters()
    model.add_adapter("b", config=adapters.LoRAConfig(dropout=0.1, places=["ffn.down"]))
    with pytest.raises(UnsupportedError, match="has dropout at the experts"):
        model.save_adapter(tmp_path / "b", "b", format="peft")
