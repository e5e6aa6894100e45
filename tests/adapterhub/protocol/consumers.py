"""Pushes a tiny BERT and a LoRA with the libraries' own calls, and loads them back: run as a program."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

BASE, LORA = "acme/tiny-bert", "acme/tiny-lora"
TEXT = "hello small world"


def main() -> None:
    """Prints what is equal."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=32,
        name_or_path=BASE,
    )
    model, tokens = BertForSequenceClassification(config).eval(), tokenizer()
    model.push_to_hub(BASE)
    tokens.push_to_hub(BASE)
    config.push_to_hub(BASE)

    loaded = AutoModelForSequenceClassification.from_pretrained(BASE)
    again = AutoTokenizer.from_pretrained(BASE)
    told = {
        "model": equal(model, loaded),
        "body": equal(model.bert, AutoModel.from_pretrained(BASE, add_pooling_layer=True)),
        "tokens": again(TEXT)["input_ids"] == tokens(TEXT)["input_ids"],
        "config": AutoConfig.from_pretrained(BASE).hidden_size == 32,
    }

    with_lora = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    for name, parameter in with_lora.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    with_lora.peft_config["default"].base_model_name_or_path = BASE
    with_lora.eval().push_to_hub(LORA)
    inputs = torch.tensor([again(TEXT)["input_ids"]])
    peft = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(BASE), LORA).eval()
    auto = AutoPeftModelForSequenceClassification.from_pretrained(LORA).eval()
    hooked = AutoModelForSequenceClassification.from_pretrained(BASE)
    hooked.load_adapter(LORA)
    with torch.no_grad():
        expected = with_lora(inputs).logits
        told |= {
            "peft": equal(with_lora, peft) and torch.equal(peft(inputs).logits, expected),
            "auto peft": torch.equal(auto(inputs).logits, expected),
            "load_adapter": lora_parts(hooked) == lora_parts(with_lora),
            "differs": not torch.equal(loaded(inputs).logits, expected),
        }
    print(json.dumps(told))


def tokenizer() -> PreTrainedTokenizerFast:
    """Splits at spaces."""
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "hello", "small", "world"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    file = Path(tempfile.mkdtemp()) / "tokenizer.json"
    inner.save(str(file))
    return PreTrainedTokenizerFast(tokenizer_file=str(file), pad_token="[PAD]", unk_token="[UNK]")


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether all tensors have the same bits."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def lora_parts(model: torch.nn.Module) -> dict[str, list[float]]:
    """The tensors of the LoRA, by their place in BERT."""
    parts = {name.split("bert.")[1]: value for name, value in model.state_dict().items() if ".lora_" in name}
    return {name: value.flatten().tolist() for name, value in parts.items()}


if __name__ == "__main__":
    main()
