"""A merged model: plain transformers opens it, it computes the same, and the model that wrote it is as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import adapters
from adapters import Stack
from adapters.errors import ConfigError, MergeError, UnsupportedError
from adapters.export import merged
from tests.tiny import build, infer, inputs, perturb

CONFIGS: dict[str, tuple[str, str, Any]] = {
    "lora": ("llama", "lm", adapters.LoRAConfig(r=4, alpha=6, places=["attn.*", "ffn.*"])),
    "fused": ("gpt2", "lm", adapters.LoRAConfig(r=4, alpha=6, attn_matrices=["q", "v"])),
    "dora": ("bert", "classification", adapters.DoRAConfig(r=4)),
    "union": (
        *("llama", "lm"),
        adapters.ConfigUnion(
            adapters.OFTConfig(block_size=8, places=["ffn.*"]), adapters.IA3Config(places=["attn.[kv]"])
        ),
    ),
    "norms": ("bert", "classification", adapters.LNTuningConfig()),
    "biases": ("bert", "classification", adapters.BitFitConfig()),
    "embeddings": ("llama", "lm", adapters.LoRAConfig(r=2, places=["embed"])),
    "tokens": ("t5", "lm", adapters.TrainableTokensConfig(token_indices=[*range(2, 40)])),
}


def trained(case: str) -> tuple[Any, str, str]:
    name, task, config = CONFIGS[case]
    model = build(name, task)
    model.add_adapter("a", config=config, set_active=True)
    perturb(model, "a")
    return model, name, task


@pytest.mark.parametrize("case", CONFIGS)
def test_plain_transformers_opens_it(case: str, tmp_path: Path) -> None:
    model, name, task = trained(case)
    given, before = inputs(name, task), {key: t.clone() for key, t in model.state_dict().items()}
    want = infer(model, given)
    assert model.export_adapter(tmp_path / "out", "a", target="merged") == {}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    plain = getattr(transformers, config["architectures"][0])
    again, info = plain.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and "adapters" not in config
    torch.testing.assert_close(infer(again.eval(), given), want, atol=2e-5, rtol=2e-4)
    after = model.state_dict()
    assert model.active_adapters == Stack("a") and not model._engine.merged
    assert after.keys() == before.keys() and all(torch.equal(before[key], t) for key, t in after.items())
    model.set_active_adapters(None)
    assert not torch.allclose(infer(model, given), want, atol=1e-3)


def test_in_several_files_that_replace_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, name, task = trained("lora")
    model.export_adapter(tmp_path, "a", target="merged")
    assert (tmp_path / "model.safetensors").exists()
    monkeypatch.setattr(merged, "SHARD", 20_000)
    model.export_adapter(tmp_path, "a", target="merged")
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and all(f"-of-{len(files):05}" in file for file in files)
    again = type(build(name, task, adapted=False)).from_pretrained(tmp_path).eval()
    given = inputs(name, task)
    torch.testing.assert_close(infer(again, given), infer(model, given), atol=2e-5, rtol=2e-4)


def test_packed_experts_get_their_names_in_files(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.MixtralConfig(**sizes, num_key_value_heads=2, intermediate_size=24, num_local_experts=4)
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
    adapters.init(model)
    model.add_adapter(
        "a", config=adapters.LoRAConfig(r=2, places=["ffn.down", "ffn.up.whole", "attn.q"]), set_active=True
    )
    perturb(model, "a")
    model.export_adapter(tmp_path, "a", target="merged")
    again = transformers.MixtralForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(12).view(1, 12)
    torch.testing.assert_close(infer(again, {"input_ids": ids}), infer(model, {"input_ids": ids}), atol=2e-5, rtol=2e-4)


def test_flexible_heads_stay_behind(tmp_path: Path) -> None:
    build("bert", adapted=False).save_pretrained(tmp_path / "base")
    model = adapters.AutoAdapterModel.from_pretrained(tmp_path / "base").eval()
    model.add_classification_head("a")
    model.add_adapter("a", config="lora", set_active=True)
    perturb(model, "a")
    model.export_adapter(tmp_path / "out", "a", target="merged")
    again = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    model.active_head = None
    given = inputs("bert")
    torch.testing.assert_close(infer(again, given), infer(model, given), atol=2e-5, rtol=2e-4)


@pytest.mark.parametrize(
    ("config", "error", "said"),
    [
        ("seq_bn", UnsupportedError, "Bottleneck at .* is no change of weights"),
        ("mam", UnsupportedError, "is no change of weights"),
        ("lora[use_gating=True]", MergeError, "depends on the input"),
        (adapters.LoRAConfig(places=["embed"]), MergeError, "lm_head has the same weights"),
    ],
)
def test_what_no_weights_can_hold_is_refused(config: Any, error: type[Exception], said: str, tmp_path: Path) -> None:
    model = build("gpt2", "lm")
    model.add_adapter("a", config=config)
    with pytest.raises(error, match=said):
        model.export_adapter(tmp_path / "out", "a", target="merged")
    with pytest.raises(ConfigError, match="rank=4 has no meaning"):
        model.export_adapter(tmp_path / "out", "a", target="merged", rank=4)
    assert not (tmp_path / "out").exists()
