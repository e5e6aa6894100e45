"""Can a model switch between vocabularies, and do embeddings come back from files?"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters.errors import AdapterNameError, CheckpointError, ConfigError
from tests.tiny import LANGUAGE_MODELS, VOCAB, WIDTH, build, infer, inputs, perturb


class Words:
    """A tokenizer as far as embeddings need one."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "words.txt").write_text("\n".join(self.words))


def stored(folder: Path, rows: int = 30, width: int = WIDTH) -> Tensor:
    folder.mkdir(exist_ok=True)
    weight = torch.randn(rows, width)
    torch.save(weight, folder / "embedding.pt")
    return weight


def few(name: str) -> Any:
    """Inputs with ids below 30."""
    return {key: t % 30 if "ids" in key else t for key, t in inputs(name).items()}


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5", "bart", "distilbert"])
def test_switching(name: str, tmp_path: Path) -> None:
    model, given = build(name), few(name)
    model.add_adapter("a", config="lora|seq_bn_inv[reduction_factor=4]", set_active=True)
    perturb(model, "a")
    module, before = model.get_input_embeddings(), infer(model, given)
    keys = model.state_dict().keys()
    assert (model.active_embeddings, list(model.loaded_embeddings)) == ("default", ["default"])
    weight = stored(tmp_path)
    assert model.load_embeddings(tmp_path, "x") is None
    assert (model.active_embeddings, list(model.loaded_embeddings)) == ("x", ["default", "x"])
    assert model.config.vocab_size == 30
    assert model.get_input_embeddings() is module and module.num_embeddings == 30
    assert model.state_dict().keys() == keys
    changed = infer(model, given)
    other = build(name, vocab_size=30)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if key in other.state_dict():
                other.state_dict()[key].copy_(tensor)
    assert torch.equal(module.weight, weight)
    model.set_active_adapters(None)
    assert torch.equal(infer(model, given), infer(other, given))
    model.set_active_adapters("a")
    model.set_active_embeddings("default")
    assert model.config.vocab_size == VOCAB
    assert torch.equal(infer(model, given), before) and not torch.allclose(changed, before)
    model.set_active_embeddings("x")
    assert torch.equal(infer(model, given), changed)
    assert not module.weight.requires_grad


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_output_embeddings_stay(name: str, tmp_path: Path) -> None:
    model = build(name, "lm")
    output = model.get_output_embeddings().weight
    stored(tmp_path, width=model.get_input_embeddings().embedding_dim)
    model.load_embeddings(tmp_path, "x")
    assert model.get_output_embeddings().weight is output and output.shape[0] == VOCAB


def test_saving(tmp_path: Path) -> None:
    model = build("bert")
    weight = stored(tmp_path / "x")
    model.load_embeddings(tmp_path / "x", "x")
    model.save_embeddings(tmp_path / "y", "x", Words("a", "b"))
    assert (tmp_path / "y" / "tokenizer" / "words.txt").read_text() == "a\nb"
    model.save_embeddings(tmp_path / "z", "default")
    assert torch.equal(torch.load(tmp_path / "y" / "embedding.pt", weights_only=True), weight)
    model.load_embeddings(tmp_path / "z", "z")
    assert torch.equal(model.loaded_embeddings["z"].weight, model.loaded_embeddings["default"].weight)


def test_the_tokenizer_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("bert")
    model.save_embeddings(tmp_path, "default", Words("a"))
    opened = "adapters.checkpoint.embeddings.AutoTokenizer.from_pretrained"
    monkeypatch.setattr(opened, lambda path: (Path(path) / "words.txt").read_text())
    assert model.load_embeddings(tmp_path, "x") == "a"


def test_adding() -> None:
    model = build("bert")
    model.add_embeddings("x", Words(*"abcde"))
    weight = model.loaded_embeddings["x"].weight
    assert model.active_embeddings == "x" and weight.shape == (5, WIDTH)
    assert weight.std() < 0.1 and not weight.requires_grad
    old = Words(*"edzab")
    model.add_embeddings("y", Words(*"abcdefg"), reference_embedding="x", reference_tokenizer=old)
    found = model.loaded_embeddings["y"].weight
    assert torch.equal(found[[0, 1, 3, 4]], weight[[3, 4, 1, 0]])
    assert not any((row == weight).all(1).any() for row in found[[2, 5, 6]])
    model.add_embeddings("z", Words("0", "1"), reference_embedding="default", reference_tokenizer=Words(*"0123"))
    default = model.loaded_embeddings["default"].weight
    assert torch.equal(model.loaded_embeddings["z"].weight, default[:2])


def test_embeddings_that_train() -> None:
    model = build("bert")
    model.add_adapter("a", config="lora")
    model.add_embeddings("x", Words(*map(str, range(VOCAB))))
    model.train_adapter("a", train_embeddings=True)
    infer_loss = model(**inputs("bert")).last_hidden_state.sum()
    infer_loss.backward()
    assert model.loaded_embeddings["x"].weight.grad is not None
    assert model.loaded_embeddings["default"].weight.grad is None


def test_deleting(tmp_path: Path) -> None:
    model, given = build("bert"), few("bert")
    before = infer(model, given)
    for name in "xy":
        stored(tmp_path)
        model.load_embeddings(tmp_path, name)
    model.delete_embeddings("x")
    assert model.active_embeddings == "y"
    model.delete_embeddings("y")
    assert (model.active_embeddings, list(model.loaded_embeddings)) == ("default", ["default"])
    assert torch.equal(infer(model, given), before)


def test_mistakes(tmp_path: Path) -> None:
    model = build("bert")
    model.add_embeddings("x", Words("a"))
    for call, error, message in (
        (lambda: model.add_embeddings("x", Words("a")), AdapterNameError, "already"),
        (lambda: model.add_embeddings("y", Words("a"), reference_embedding="x"), KeyError, "go together"),
        (lambda: model.add_embeddings("y", Words("a"), reference_tokenizer=Words()), ConfigError, "go together"),
        (lambda: model.add_embeddings("y", Words("a"), embedding_dim=8), ConfigError, "take 32"),
        (lambda: model.add_embeddings("y", Words("a"), "z", Words("a")), AdapterNameError, "'z'"),
        (lambda: model.set_active_embeddings("z"), ValueError, "'z'"),
        (lambda: model.delete_embeddings("z"), ValueError, "'z'"),
        (lambda: model.delete_embeddings("default"), ValueError, "own"),
        (lambda: model.save_embeddings(tmp_path, "z"), ValueError, "'z'"),
        (lambda: model.load_embeddings(tmp_path, "y"), FileNotFoundError, "embedding.pt"),
    ):
        with pytest.raises(error, match=message):
            call()
    stored(tmp_path, width=8)
    with pytest.raises(CheckpointError, match="32 columns"):
        model.load_embeddings(tmp_path, "y")
    (tmp_path / "embedding.pt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"embedding\.pt"):
        model.load_embeddings(tmp_path, "y")
    assert list(model.loaded_embeddings) == ["default", "x"]


def test_a_copy_has_its_own(tmp_path: Path) -> None:
    model = build("bert")
    stored(tmp_path)
    model.load_embeddings(tmp_path, "x")
    other = copy.deepcopy(model)
    other.set_active_embeddings("default")
    assert (model.config.vocab_size, other.config.vocab_size) == (30, VOCAB)
    assert model.get_input_embeddings().weight.shape[0] == 30
    with torch.no_grad():
        other.loaded_embeddings["x"].weight.zero_()
    assert model.get_input_embeddings().weight.abs().max() > 0


def test_width_dtype_follow_the_model(tmp_path: Path) -> None:
    stored(tmp_path, width=16)
    model = build("electra").to(torch.bfloat16)
    model.load_embeddings(tmp_path, "x")
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
