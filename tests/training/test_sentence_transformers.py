"""Do SentenceTransformers and SetFit models train, save, resume and open with adapters in their models?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

import adapters
from adapters import Stack
from adapters.errors import CheckpointNotFound
from tests.training.test_adapter_trainer import ADAPTER, files_below
from tests.training.toy import changed, snapshot

GUIDE = Path(__file__).parents[2] / "docs" / "sentence_transformers.md"
TEXTS = ["w1 w2 w3", "w4 w5"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def library() -> Any:
    """sentence-transformers and datasets, which take seconds to import; transformers knows our type of model then."""
    for name in ("sentence_transformers", "datasets"):
        pytest.importorskip(name)
    import datasets
    import sentence_transformers
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    return SimpleNamespace(
        Model=sentence_transformers.SentenceTransformer,
        CrossEncoder=sentence_transformers.CrossEncoder,
        Trainer=sentence_transformers.SentenceTransformerTrainer,
        Arguments=sentence_transformers.SentenceTransformerTrainingArguments,
        Loss=MultipleNegativesRankingLoss,
        Transformer=Transformer,
        Pooling=Pooling,
        Dataset=datasets.Dataset,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny BERT and a tokenizer of forty words."""
    folder = tmp_path_factory.mktemp("base")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **special).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def built(library: Any, base: Path) -> Any:
    """A SentenceTransformer that trains a bottleneck on top of a LoRA."""
    transformer = library.Transformer(str(base))
    model = adapters.init(transformer.model)
    torch.manual_seed(1)
    model.add_adapter("a", config="lora")
    model.add_adapter("b", config="seq_bn")
    model.train_adapter(Stack("a", "b"))
    return library.Model(modules=[transformer, library.Pooling(16)], device="cpu")


def pairs(library: Any) -> Any:
    rows = range(16)
    return library.Dataset.from_dict(
        {"anchor": [f"w{i} w{i + 1}" for i in rows], "positive": [f"w{i + 1} w{i}" for i in rows]}
    )


def trainer(library: Any, model: Any, folder: Path, **changes: Any) -> Any:
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False, "seed": 0}
    run = {"max_steps": 4, "save_steps": 2, "save_strategy": "steps", "per_device_train_batch_size": 4}
    args = library.Arguments(str(folder), learning_rate=1e-2, **quiet, **run, **changes)
    data = pairs(library)
    return library.Trainer(model, args, train_dataset=data, eval_dataset=data, loss=library.Loss(model))


@pytest.fixture(scope="module")
def run(library: Any, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained model, and the folder of its checkpoints."""
    folder = tmp_path_factory.mktemp("run")
    model = built(library, base)
    trainer(library, model, folder).train()
    return SimpleNamespace(model=model, folder=folder)


def test_checkpoints_hold_what_trains(run: Any) -> None:
    found = files_below(run.folder / "checkpoint-4")
    assert (found["a"], found["b"]) == (ADAPTER, ADAPTER)
    assert (run.folder / "checkpoint-4" / "model.safetensors").stat().st_size < 300, "it has no tensor"
    assert not [name for name in found if name not in (".", "a", "b", "1_Pooling")]


def test_training_resumes_to_the_bit(library: Any, base: Path, run: Any, tmp_path: Path) -> None:
    part = built(library, base)
    assert changed(snapshot(run.model), part)
    trainer(library, part, tmp_path).train(resume_from_checkpoint=str(run.folder / "checkpoint-2"))
    assert not changed(snapshot(run.model), part)


def test_the_best_model_comes_back(library: Any, base: Path, tmp_path: Path) -> None:
    scores, states = iter([1.0, 2.0]), []
    model = built(library, base)

    def evaluator(model: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        states.append(snapshot(model))
        return {"score": next(scores)}

    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    best |= {"metric_for_best_model": "eval_score", "greater_is_better": False}
    made = trainer(library, model, tmp_path, **best)
    made.evaluator = evaluator
    made.train()
    assert made.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert changed(states[1], model) and not changed(states[0], model)


def test_the_whole_model_is_saved_and_opened(library: Any, run: Any, tmp_path: Path) -> None:
    expected = run.model.encode(TEXTS)
    run.model.save_pretrained(str(tmp_path))
    again = library.Model(str(tmp_path), device="cpu")
    assert np.array_equal(again.encode(TEXTS), expected)
    model = again[0].model
    assert model.active_adapters == Stack("a", "b")
    assert not changed(snapshot(run.model), again)
    assert (type(model).__name__, model.config.model_type) == ("BertModel", "bert")
    model.set_active_adapters(None)
    again.save_pretrained(str(tmp_path / "off"))
    assert library.Model(str(tmp_path / "off"), device="cpu")[0].model.active_adapters is None
    opened = adapters.load_model(tmp_path, BertModel, config=AutoConfig.from_pretrained(tmp_path).own())
    assert not changed(snapshot(model), opened)


def test_a_checkpoint_is_opened_on_its_base(library: Any, run: Any, tmp_path: Path) -> None:
    checkpoint = run.folder / "checkpoint-4"
    opened = library.Model(str(checkpoint), device="cpu")
    assert np.array_equal(opened.encode(TEXTS), run.model.encode(TEXTS))
    assert opened[0].model.active_adapters == Stack("a", "b")
    file = checkpoint / "config.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(json.dumps({**json.loads(text), "inner_base": str(tmp_path / "gone")}), encoding="utf-8")
    with pytest.raises(CheckpointNotFound, match=r"holds adapters only.*gone.*load_adapter"):
        library.Model(str(checkpoint), device="cpu")
    file.write_text(text, encoding="utf-8")


def test_a_person_who_saves_the_model_gets_its_own_type(run: Any, tmp_path: Path) -> None:
    model = run.model[0].model
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == "bert"
    assert not changed(snapshot(model), adapters.load_model(tmp_path, BertModel))


def test_the_head_of_a_cross_encoder(library: Any, base: Path, tmp_path: Path) -> None:
    model = library.CrossEncoder(str(base), num_labels=1, device="cpu")
    inner = model[0].model
    assert isinstance(inner, BertForSequenceClassification)
    adapters.init(inner)
    inner.add_adapter("a", config="lora")
    inner.train_adapter("a")
    torch.nn.init.normal_(inner.classifier.weight)
    asked = [("w1 w2", "w3"), ("w4", "w5 w6")]
    expected = model.predict(asked)
    model.save_pretrained(str(tmp_path))
    again = library.CrossEncoder(str(tmp_path), device="cpu")
    assert np.array_equal(again.predict(asked), expected)
    assert not changed(snapshot(inner), again[0].model)


@pytest.mark.slow
def test_sentence_transformers_may_be_imported_first(run: Any, tmp_path: Path) -> None:
    run.model.save_pretrained(str(tmp_path))
    code = f"""
import sentence_transformers, adapters
model = sentence_transformers.SentenceTransformer({str(tmp_path)!r}, device="cpu")
print(model[0].model.active_adapters)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(adapters.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "Stack[a, b]"


def test_the_guide_runs(
    library: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("setfit")
    monkeypatch.chdir(tmp_path)
    plain = library.Model(modules=[library.Transformer(str(base)), library.Pooling(16)], device="cpu")
    plain.save_pretrained("sentences")
    labels = {"text": [f"w{i} w{i + 1}" for i in range(8)], "label": [i % 2 for i in range(8)]}
    given = {"pairs": pairs(library), "labelled": library.Dataset.from_dict(labels)}
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), given)
    assert "Stack[topic]" in capsys.readouterr().out
    trained, again, early = given["sentences"], given["again"], given["early"]
    assert np.array_equal(trained.encode(TEXTS), again.encode(TEXTS))
    assert changed(snapshot(trained), early)
    assert all(".topic." in name for name in changed(snapshot(trained), early))
    before, after = given["classifier"], given["opened"]
    assert np.array_equal(before.predict_proba(TEXTS, as_numpy=True), after.predict_proba(TEXTS, as_numpy=True))
    assert str(after.model_body[0].model.active_adapters) == "Stack[intent]"
    bodies = [model.model_body[0].model for model in (before, after)]
    assert not changed(snapshot(bodies[0]), bodies[1])
    inner = plain[0].model.state_dict()
    adapted = {name: value for name, value in bodies[0].state_dict().items() if ".intent." not in name}
    assert all(torch.equal(inner[name], value) for name, value in adapted.items()), "the base model did not train"
