"""Adapters of PEFT take part in blocks with ours; heads, prefixes and fused projections come in and go out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import adapters
from adapters import Average, BatchSplit, Fuse, Parallel, Stack
from adapters.checkpoint.tensors import read_safetensors
from adapters.errors import CheckpointError
from tests.checkpoint.with_peft.cases import CASES, TARGETS, moved, theirs
from tests.tiny import LABELS, TINY_MODELS, build, infer, inputs, perturb

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.filterwarnings("ignore:.*rank_pattern keys did not match:RuntimeWarning")  # PEFT says so of its own names
def test_ranks_that_adalora_took_away(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    theirs("adalora", "bert").save_pretrained(folder)
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    config["rank_pattern"] = {}
    for number, key in enumerate([key for key in tensors if key.endswith("lora_E")]):
        kept = [True] * (1 + number % 3) + [False] * (3 - number % 3)
        config["rank_pattern"][key.removeprefix("base_model.model.")] = kept
        start = key.removesuffix("lora_E")
        for end in ("lora_A", "lora_E"):
            tensors[start + end] = tensors[start + end][torch.tensor(kept)]
        tensors[f"{start}lora_B"] = tensors[f"{start}lora_B"][:, torch.tensor(kept)].contiguous()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    given, model = inputs("bert"), build("bert")
    want = infer(peft.PeftModel.from_pretrained(build("bert", adapted=False), folder).eval(), given)
    model.load_adapter(folder, set_active=True)
    torch.testing.assert_close(infer(model, given), want, atol=1e-5, rtol=1e-4)
    model.save_adapter(tmp_path / "b", "a", format="peft")
    again = peft.PeftModel.from_pretrained(build("bert", adapted=False), tmp_path / "b").eval()
    torch.testing.assert_close(infer(again, given), want, atol=1e-5, rtol=1e-4)


ROTARY = ("llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("case", [case for case in CASES if case != "all-linear"])
def test_blocks_with_our_own(case: str, tmp_path: Path) -> None:
    theirs(case, "bert").save_pretrained(tmp_path / "theirs")
    model, given = build("bert"), inputs("bert")
    model.load_adapter(tmp_path / "theirs")
    model.add_adapter("ours", config="seq_bn")
    perturb(model, "ours")
    model.set_active_adapters("theirs")
    alone = infer(model, given)
    model.set_active_adapters("ours")
    ours = infer(model, given)
    model.set_active_adapters(BatchSplit("theirs", "ours", batch_sizes=[2, 2]))
    torch.testing.assert_close(infer(model, given), torch.cat([alone[:2], ours[2:]]), atol=1e-5, rtol=1e-4)
    model.set_active_adapters(Parallel("theirs", "ours"))
    torch.testing.assert_close(infer(model, given), torch.cat([alone, ours]), atol=1e-5, rtol=1e-4)
    model.set_active_adapters(Average("theirs", "theirs", weights=[0.5, 0.5]))
    torch.testing.assert_close(infer(model, given), alone, atol=1e-5, rtol=1e-4)
    model.set_active_adapters(Stack("theirs", "ours"))
    assert not torch.allclose(infer(model, given), ours, atol=1e-3)
    # the last acts at the pooler too, where there are no positions to attend to; embeddings read nothing but numbers
    if case not in ("embeddings", "embeddings, dora", "lora and tokens", "tokens", "all biases"):
        model.load_adapter(tmp_path / "theirs", load_as="again")
        model.add_adapter_fusion(["theirs", "again"])
        model.set_active_adapters(Fuse("theirs", "again"))
        assert infer(model, given).isfinite().all()
    model.train_adapter("theirs")
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ROTARY)
def test_prefixes_of_rotary_decoders(name: str, tmp_path: Path) -> None:
    config = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    other: Any = peft.get_peft_model(build(name, "lm", adapted=False), config).eval()
    other.save_pretrained(tmp_path / "a")
    model, given = build(name, "lm"), inputs(name, "lm", padded=False)
    model.load_adapter(tmp_path / "a", set_active=True)
    want = infer(other, given)
    torch.testing.assert_close(infer(model, given), want, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(want, infer(build(name, "lm"), given), atol=1e-2)
    model.save_adapter(tmp_path / "b", "a", format="peft")
    again = peft.PeftModel.from_pretrained(build(name, "lm", adapted=False), tmp_path / "b").eval()
    torch.testing.assert_close(infer(again, given), want, atol=1e-5, rtol=1e-4)


PROMPTED = [name for name, tiny in TINY_MODELS.items() if tiny.kind in ("decoder", "encoder-decoder")]


@pytest.mark.parametrize("kind", ["prompt", "lstm", "mlp"])
@pytest.mark.parametrize("name", PROMPTED)
def test_prompts(name: str, kind: str, tmp_path: Path) -> None:
    """Files of P-tuning hold what its network made of its embedding: it comes in as the prompt that it is."""
    task = "SEQ_2_SEQ_LM" if TINY_MODELS[name].kind == "encoder-decoder" else "CAUSAL_LM"
    options: dict[str, Any] = {"num_virtual_tokens": 3, "task_type": task}
    network = {"encoder_hidden_size": 8, "encoder_reparameterization_type": kind.upper()}
    torch.manual_seed(0)
    other: Any = peft.get_peft_model(
        build(name, "lm", adapted=False),
        peft.PromptTuningConfig(**options) if kind == "prompt" else peft.PromptEncoderConfig(**options, **network),
    ).eval()
    moved(other)
    other.save_pretrained(tmp_path / "a")
    given = inputs(name, "lm")
    want = infer(other, given)
    want = want[:, 3:] if task == "CAUSAL_LM" else want  # PEFT leaves what the prompt predicts
    model = build(name, "lm")
    base = infer(model, given)
    model.load_adapter(tmp_path / "a", set_active=True)
    torch.testing.assert_close(infer(model, given), want, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(want, base, atol=1e-3)

    ids = inputs(name, "lm", padded=False)["input_ids"]
    written = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(written, other.generate(input_ids=ids, max_new_tokens=4, do_sample=False))

    model.save_adapter(tmp_path / "b", "a", format="peft")
    again = peft.PeftModel.from_pretrained(build(name, "lm", adapted=False), tmp_path / "b").eval()
    found = infer(again, given)
    torch.testing.assert_close(found[:, 3:] if task == "CAUSAL_LM" else found, want, atol=1e-5, rtol=1e-4)


HEADED = [name for name in TINY_MODELS if name not in ("mt5", "vit")]


def classifier(name: str) -> Any:
    config = peft.LoraConfig(r=4, target_modules=TARGETS[name], task_type="SEQ_CLS")
    torch.manual_seed(0)
    model: Any = peft.get_peft_model(build(name, "classification", adapted=False), config).eval()
    moved(model)
    return model


@pytest.mark.parametrize("name", HEADED)
def test_heads_of_plain_classes(name: str, tmp_path: Path) -> None:
    other, model, given = classifier(name), build(name, "classification"), inputs(name, "classification")
    other.save_pretrained(tmp_path / "a")
    want = infer(other, given)
    model.load_adapter(tmp_path / "a", set_active=True)
    assert torch.equal(infer(model, given), want)
    model.save_adapter(tmp_path / "b", "a", format="peft")
    plain = build(name, "classification", adapted=False)
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "b").eval()
    assert torch.equal(infer(again, given), want)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "gpt2"])
def test_heads_become_flexible_ones(name: str, tmp_path: Path) -> None:
    other, given = classifier(name), inputs(name, "classification")
    other.save_pretrained(tmp_path / "a")
    plain = build(name, "classification", adapted=False)
    plain.save_pretrained(tmp_path / "base")
    model = adapters.AutoAdapterModel.from_pretrained(tmp_path / "base").eval()
    model.delete_head("default") if "default" in model.heads else None
    model.load_adapter(tmp_path / "a", set_active=True)
    assert model.heads["a"].config["num_labels"] == LABELS
    model.active_head = "a"
    torch.testing.assert_close(infer(model, given), infer(other, given), atol=1e-5, rtol=1e-4)
    model.save_adapter(tmp_path / "b", "a", format="peft")
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "b").eval()
    torch.testing.assert_close(infer(again, given), infer(other, given), atol=1e-5, rtol=1e-4)


def test_a_head_that_does_not_fit_leaves_the_model(tmp_path: Path) -> None:
    classifier("bert").save_pretrained(tmp_path / "a")
    model = build("bert", "classification", num_labels=5)
    before = model.classifier.weight.clone()
    with pytest.raises(CheckpointError, match=r"(?s)num_labels.*classifier.weight is \(3, 32\)"):
        model.load_adapter(tmp_path / "a")
    assert torch.equal(model.classifier.weight, before) and not model.has_adapters()
    model.load_adapter(tmp_path / "a", with_head=False)
    assert torch.equal(model.classifier.weight, before)


def test_parts_of_a_fused_projection_become_one_of_peft(tmp_path: Path) -> None:
    model, given = build("gpt2"), inputs("gpt2")
    model.add_adapter("a", config="lora[r=2,alpha=6]", set_active=True)
    perturb(model, "a")
    model.save_adapter(tmp_path, "a", format="peft")
    other = peft.PeftModel.from_pretrained(build("gpt2", adapted=False), tmp_path).eval()
    torch.testing.assert_close(infer(other, given), infer(model, given), atol=1e-5, rtol=1e-4)
    assert {
        t.shape[0] for key, t in read_safetensors(tmp_path / "adapter_model.safetensors").items() if "lora_A" in key
    } == {4}


def test_each_format_replaces_the_other(tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config="lora")
    names = {}
    for form in ("adapters", "peft", "adapters"):
        model.save_adapter(tmp_path, "a", format=form)
        names[form] = sorted(path.name for path in tmp_path.iterdir())
    assert names == {
        "adapters": ["adapter.safetensors", "adapter_config.json"],
        "peft": ["adapter_config.json", "adapter_model.safetensors"],
    }


def test_layers_that_are_left_out(tmp_path: Path) -> None:
    theirs("lora", "bert").save_pretrained(tmp_path / "a")
    model = build("bert")
    model.load_adapter(tmp_path / "a", leave_out=[0])
    assert {part.layer for part in model._engine.parts["a"]} == {1}
    model.set_active_adapters("a")
    assert infer(model, inputs("bert")).isfinite().all()
