"""What is wrong with a checkpoint of PEFT is said, and the model stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters import Stack
from adapters.errors import AdapterError, CheckpointError, ConfigError, UnsupportedError
from tests.checkpoint.with_peft.cases import theirs
from tests.tiny import build, hooks, infer, inputs

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning")]
KEY = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
TOKENS = "base_model.model.embeddings.word_embeddings.token_adapter.trainable_tokens_delta"
Change = Callable[[dict[str, Any], dict[str, Any]], Any]

WRONG: dict[str, tuple[Change, str]] = {
    "unknown type": (lambda c, t: c.update(peft_type="NEWEST"), "'NEWEST' cannot be read.*Allowed: ADALORA"),
    "no type": (lambda c, t: c.pop("peft_type"), "names no peft_type"),
    "type of another type": (lambda c, t: c.update(peft_type=3), "names no peft_type"),
    "other type": (lambda c, t: c.update(peft_type="LOHA"), "no tensor of the type LOHA.*hada_w1_a"),
    "rank": (lambda c, t: c.update(r=3), r"is \(4, 32\), but its config.*\(3, 32\)"),
    "huge rank": (lambda c, t: c.update(r=10**12), r"\(1000000000000, 32\)"),
    "rank of another type": (lambda c, t: c.update(r="8"), "r is '8'. Allowed: an integer of at least 1"),
    "no rank": (lambda c, t: c.update(r=0), "r is 0. Allowed"),
    "alpha": (lambda c, t: c.update(lora_alpha=float("nan")), "lora_alpha is nan. Allowed: a number"),
    "pattern": (lambda c, t: c.update(rank_pattern=[1]), "rank_pattern is"),
    "regex": (lambda c, t: c.update(target_modules="(query"), "no regular expression"),
    "targets": (lambda c, t: c.update(target_modules={"query": 1}), "target_modules is .*Allowed"),
    "an option that changes the numbers": (lambda c, t: c.update(use_qalora=True), "QALoRA pools"),
    "magnitudes": (lambda c, t: c.update(use_dora=True), "lacks the tensor magnitude"),
    "beyond": (lambda c, t: c.update(target_modules=["query"]), "its config does not mean: .*value"),
    "missing module": (
        lambda c, t: [t.pop(key) for key in [k for k in t if "layer.1.attention.self.query" in k]],
        "lacks tensors for modules that its config means: encoder.layer.1.attention.self.query",
    ),
    "missing tensor": (lambda c, t: t.pop(KEY), "lacks the tensor lora_A"),
    "no tensors": (lambda c, t: t.clear(), "has no tensors"),
    "unexpected": (
        lambda c, t: t.update({"base_model.model.extra.weight": torch.ones(2)}),
        "unexpected: .*extra.weight",
    ),
    "another module": (
        lambda c, t: t.update({KEY.replace("query", "nothing"): t[KEY].clone()}),
        "no such module.*Allowed: dense, key, query, value",
    ),
    "an embedding": (
        lambda c, t: t.update({"base_model.model.embeddings.word_embeddings.lora_embedding_A": torch.ones(4, 64)}),
        "its config does not mean: embeddings.word_embeddings",
    ),
    "half of an embedding": (
        lambda c, t: (
            c["target_modules"].append("word_embeddings"),
            t.update({"base_model.model.embeddings.word_embeddings.lora_embedding_A": torch.ones(4, 64)}),
        ),
        "lacks the tensor lora_B of embeddings.word_embeddings",
    ),
    "another vocabulary": (
        lambda c, t: (
            c["target_modules"].append("word_embeddings"),
            t.update({"base_model.model.embeddings.word_embeddings.lora_embedding_A": torch.ones(4, 70)}),
        ),
        r"lora_A of embeddings.word_embeddings is \(4, 70\), but .*\(4, 64\)",
    ),
    "tokens of which nothing is said": (
        lambda c, t: t.update({TOKENS: torch.ones(2, 32)}),
        "rows of tokens at embeddings.word_embeddings, but its config does not say of which",
    ),
    "fewer tokens": (
        lambda c, t: (t.update({TOKENS: torch.ones(2, 32)}), c.update(trainable_token_indices=[1])),
        r"are \(2, 32\), but its config names 1 tokens",
    ),
    "tokens beyond the vocabulary": (
        lambda c, t: (t.update({TOKENS: torch.ones(2, 32)}), c.update(trainable_token_indices=[1, 64])),
        r"trains the token 64, but .* has 64 rows here. Call model.resize_token_embeddings\(65\)",
    ),
    "tokens of a linear map": (
        lambda c, t: (
            t.update({TOKENS.replace("embeddings.word_embeddings", "pooler"): torch.ones(1, 32)}),
            c.update(trainable_token_indices=[1]),
        ),
        "trains tokens of pooler, which is no table of embeddings",
    ),
    "numbers of tokens": (lambda c, t: c.update(trainable_token_indices=[-1]), "trainable_token_indices is .*Allowed"),
    "parameters": (lambda c, t: c.update(target_parameters="experts"), "target_parameters is 'experts'. Allowed"),
    "integers": (lambda c, t: t.update({KEY: t[KEY].int()}), "does not fit|holds torch.int32"),
    "pissa": (lambda c, t: c.update(init_lora_weights="pissa_niter_4"), "path_initial_model_for_weight_conversion"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    theirs("lora", "bert").save_pretrained(tmp_path / "a")
    return tmp_path / "a"


def rewritten(folder: Path, change: Change) -> None:
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    change(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")


def refused(model: Any, folder: Path, said: str, **options: Any) -> None:
    model.add_adapter("own", config="lora", set_active=True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(AdapterError, match=f"(?s){said}"):
        model.load_adapter(folder, **options)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(before[key], t) for key, t in after.items())
    assert list(model.adapters_config) == ["own"] and model.active_adapters == Stack("own") and hooks(model)


@pytest.mark.parametrize("case", WRONG)
def test_it_is_refused(case: str, folder: Path) -> None:
    rewritten(folder, WRONG[case][0])
    refused(build("bert"), folder, WRONG[case][1])


class Evil:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_a_pickle_runs_nothing(folder: Path, capsys: Any) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({**tensors, "x": Evil()}, folder / "adapter_model.bin")
    refused(build("bert"), folder, "cannot be read safely|not a file of tensors")
    assert "run" not in capsys.readouterr().out
    torch.save(tensors, folder / "adapter_model.bin")
    model = build("bert")
    assert model.load_adapter(folder) == "a"


def test_a_pointer_and_a_name_that_is_taken(folder: Path) -> None:
    model = build("bert")
    model.load_adapter(folder, load_as="own2")
    with pytest.raises(CheckpointError, match="Pass load_as"):
        model.load_adapter(folder, load_as="own2")
    (folder / "adapter_config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(build("bert"), folder, "not a readable JSON file")


def test_names_of_older_and_newer_versions(folder: Path) -> None:
    model, given = build("bert"), inputs("bert")
    model.load_adapter(folder, set_active=True)
    want = infer(model, given)

    def older(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(
            merge_weights=False, fan_in_fan_out=None, megatron_core="x", a_future_option={"x": 1}, lora_dropout=0
        )
        for key in list(tensors):
            tensors[key.replace(".weight", ".default.weight")] = tensors.pop(key)

    rewritten(folder, older)
    model.load_adapter(folder, load_as="b", set_active=True)
    assert torch.equal(infer(model, given), want)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("seq_bn", "modules of Bottleneck.*It can hold adapters of one of: LoRA"),
        ("lora[use_gating=True]", "has a gate"),
        ("dora", "dora_form='weight'"),
        ("vera", "vera_diagonal=True"),
        ("mam", "no one type of PEFT"),
        ("prefix_tuning_flat", "positions"),
    ],
)
def test_what_peft_cannot_hold(config: str, said: str, tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config=config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".a." in key:
                parameter.add_(torch.randn_like(parameter))
    with pytest.raises(UnsupportedError, match=f"(?s){said}"):
        model.save_adapter(tmp_path / "out", "a", format="peft")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    with pytest.raises(ConfigError, match="Allowed: adapters, peft"):
        model.save_adapter(tmp_path / "out", "a", format="pefft")
