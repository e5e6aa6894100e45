"""Prompt tuning: where the prompt stands, and that the rest of the model sees it as attended positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapters import Average, ConfigUnion, LoRAConfig, PromptTuningConfig
from tests.methods.reference import adapted, close, weights
from tests.tiny import build, infer, inputs

NAMES = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "vit")


def embedded(model: Any, given: Any) -> Any:
    """What leaves the embeddings."""
    found: list[Any] = []

    def note(module: Any, args: Any, output: Any) -> None:
        found.append(output)

    handle = model.embeddings.register_forward_hook(note)
    infer(model, given)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("combine", ["prefix", "prefix_after_bos"])
@pytest.mark.parametrize("name", NAMES)
def test_where_it_stands(name: str, combine: str) -> None:
    model, given = adapted(name, PromptTuningConfig(prompt_length=3, combine=combine)), inputs(name)
    found = embedded(model, given)
    model.set_active_adapters(None)
    plain = embedded(model, given)
    prompt = weights(model, "prompt_tuning.prompt_tunings")["prompt_embedding.weight"].expand(len(plain), -1, -1)
    split = 1 if combine == "prefix_after_bos" else 0
    close(found, torch.cat([plain[:, :split], prompt, plain[:, split:]], 1))


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_is_attended_to_and_padding_is_not(name: str, attention: str) -> None:
    """The encoder alone, on the lengthened embeddings and mask, gives the same."""
    model, given = adapted(name, PromptTuningConfig(prompt_length=3), attn_implementation=attention), inputs(name)
    found, h = infer(model, given), embedded(model, given)
    model.set_active_adapters(None)
    mask = torch.cat([torch.ones(len(h), 3), given["attention_mask"]], 1)[:, None, None].log()
    if name == "electra":
        h = model.embeddings_project(h)
    layers = model.transformer.layer if name == "distilbert" else model.encoder.layer
    with torch.no_grad():
        for layer in layers:
            result = layer(h, mask)
            h = result[0] if isinstance(result, tuple) else result
    close(found, h)


def test_initial_weights() -> None:
    model = build("bert")
    model.add_adapter("a", config=PromptTuningConfig(prompt_length=50))
    prompt = weights(model, "prompt_tuning.prompt_tunings")["prompt_embedding.weight"]
    assert prompt.shape == (50, 32)
    assert prompt.abs().max() <= 0.5 and 0.25 < prompt.std() < 0.33


def test_from_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token ids are repeated until the prompt is full; their embeddings are copied."""
    monkeypatch.setattr(
        "adapters.methods.prompt_tuning.AutoTokenizer",
        type("Tokenizers", (), {"from_pretrained": lambda *a, **k: lambda text, **kw: {"input_ids": [5, 9, 7]}}),
    )
    model = build("bert")
    model.add_adapter(
        "a", config=PromptTuningConfig(prompt_length=5, prompt_init="from_string", prompt_init_text="a b c")
    )
    prompt = weights(model, "prompt_tuning.prompt_tunings")["prompt_embedding.weight"]
    assert torch.equal(prompt, model.get_input_embeddings().weight[[5, 9, 7, 5, 9]])


def test_together_with_other_methods() -> None:
    model, given = adapted("bert", ConfigUnion(PromptTuningConfig(prompt_length=3), LoRAConfig())), inputs("bert")
    assert infer(model, given).shape[1] == given["input_ids"].shape[1] + 3
    model.add_adapter("b", config=PromptTuningConfig(prompt_length=3))
    model.set_active_adapters(Average("a", "b"))
    prompts = [weights(model, "prompt_tuning.prompt_tunings", n)["prompt_embedding.weight"] for n in "ab"]
    close(embedded(model, given)[0, :3], (prompts[0] + prompts[1]) / 2)
