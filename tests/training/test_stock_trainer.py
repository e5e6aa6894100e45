"""Does transformers' own Trainer train, save, resume, evaluate and generate with our models?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback

import adapters
from adapters import AutoAdapterModel, BertAdapterModel, Fuse
from tests.contract.cases import CONFIGS
from tests.tiny import LABELS, TINY_MODELS, build, config, infer, inputs
from tests.training.toy import (
    CHECKPOINTING,
    any_examples,
    arguments,
    changed,
    flexible,
    flexible_t5,
    marked_sentences,
    repeated_words,
    snapshot,
    trained,
)

pytestmark = pytest.mark.versions

METHODS = ("seq_bn", "lora", "prefix_tuning", "ia3", "dora", "compacter", "prompt_tuning", "mam", "unipelt", "loreft")


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls_and_only_adapter_and_head_change(method: str, tmp_path: Path) -> None:
    model, data = trained(method=CONFIGS[method]), marked_sentences()
    trainer = Trainer(model, arguments(tmp_path, max_steps=60), train_dataset=data, eval_dataset=data)
    before, start = snapshot(model), trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * start
    names = changed(before, model)
    assert names
    assert all(".a." in name or name.startswith("classifier.") for name in names)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_resumed_training_equals_uninterrupted_training(name: str, tmp_path: Path) -> None:
    data = any_examples(name)
    whole = trained(name, "mam")
    Trainer(whole, arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=4), train_dataset=data).train()
    part = trained(name, "mam")
    before = snapshot(part)
    trainer = Trainer(part, arguments(tmp_path, save_steps=2, max_steps=4), train_dataset=data)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert changed(before, part)
    assert not changed(snapshot(whole), part)


class Snapshots(TrainerCallback):
    """Remembers the model at every evaluation."""

    def __init__(self) -> None:
        self.all: list[dict[str, torch.Tensor]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.all.append(snapshot(model))


def train_with_best_in_the_middle(cls: type[Any], model: Any, data: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Trains for three evaluations, of which the second is called the best; returns the tensors at that moment."""
    scores = iter([1.0, 3.0, 2.0])
    seen = Snapshots()
    options = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2, "max_steps": 6}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    trainer = cls(
        model,
        arguments(folder, **options, **best),
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda prediction: {"score": next(scores)},
        callbacks=[seen],
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-4")
    return seen.all[1]


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit"])
def test_the_best_model_is_loaded(name: str, tmp_path: Path) -> None:
    model = trained(name)
    best = train_with_best_in_the_middle(Trainer, model, any_examples(name), tmp_path)
    assert not changed(best, model)


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit"])
def test_a_saved_model_opens_again_with_its_adapters(name: str, tmp_path: Path) -> None:
    model, data = trained(name, "mam"), any_examples(name)
    Trainer(model, arguments(tmp_path), train_dataset=data).train()
    model.save_pretrained(tmp_path)
    opened = adapters.load_model(tmp_path, getattr(transformers, type(model).__name__))
    assert not changed(snapshot(model), opened)


def test_a_saved_flexible_model_opens_again(tmp_path: Path) -> None:
    model = flexible("seq_bn")
    Trainer(model, arguments(tmp_path), train_dataset=marked_sentences()).train()
    model.save_pretrained(tmp_path)
    opened = AutoAdapterModel.from_pretrained(tmp_path)
    opened.set_active_adapters("a")
    assert torch.equal(infer(opened, inputs("bert")), infer(model.eval(), inputs("bert")))


@pytest.mark.parametrize("make", [flexible, flexible_t5])
def test_a_flexible_model_resumes(make: Any, tmp_path: Path) -> None:
    data = marked_sentences() if make is flexible else repeated_words()
    whole, part = make(), make()
    Trainer(whole, arguments(tmp_path, save_strategy="steps", save_steps=4), train_dataset=data).train()
    checkpoint = str(tmp_path / "checkpoint-4")
    Trainer(part, arguments(tmp_path, save_steps=4), train_dataset=data).train(resume_from_checkpoint=checkpoint)
    assert not changed(snapshot(whole), part)


def test_fusion_resumes(tmp_path: Path) -> None:
    def fused() -> Any:
        model = trained(method="seq_bn")
        torch.manual_seed(1)
        model.add_adapter("b", config="seq_bn")
        model.add_adapter_fusion(Fuse("a", "b"))
        model.train_adapter_fusion(Fuse("a", "b"))
        return model

    whole, part, data = fused(), fused(), marked_sentences()
    Trainer(whole, arguments(tmp_path, save_strategy="steps", save_steps=4), train_dataset=data).train()
    checkpoint = str(tmp_path / "checkpoint-4")
    Trainer(part, arguments(tmp_path, save_steps=4), train_dataset=data).train(resume_from_checkpoint=checkpoint)
    assert not changed(snapshot(whole), part)


# ------------------------------------------------------------------------------------------------------- columns


def test_columns_and_labels_of_flexible_heads_are_recognised(tmp_path: Path) -> None:
    model, data = flexible(), marked_sentences()
    trainer = Trainer(model, arguments(tmp_path), train_dataset=data, eval_dataset=data)
    assert trainer.label_names == ["labels"]
    prediction = trainer.predict(data)
    assert prediction.metrics["test_loss"] > 0
    assert prediction.predictions.shape == (len(data), LABELS)
    assert np.array_equal(prediction.label_ids, [int(row["labels"]) for row in data])


def test_question_answering_heads_name_two_labels(tmp_path: Path) -> None:
    model = BertAdapterModel(config("bert"))
    model.add_adapter("a", config="lora")
    model.add_qa_head("a")
    model.train_adapter("a")
    data = [
        {"input_ids": row["input_ids"], "start_positions": torch.tensor(1), "end_positions": torch.tensor(2)}
        for row in marked_sentences()
    ]
    args = arguments(tmp_path, label_names=["start_positions", "end_positions"])
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data)
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < start


# ---------------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize("kind", ["plain", "flexible"])
def test_generation_during_evaluation(kind: str, tmp_path: Path) -> None:
    model = trained("t5", tie_word_embeddings=True) if kind == "plain" else flexible_t5()
    data, seen = repeated_words(), []

    def metrics(prediction: Any) -> dict[str, float]:
        seen.append(prediction.predictions)
        return {"right": float((prediction.predictions[:, 1:4] == prediction.label_ids[:, :3]).mean())}

    args = arguments(tmp_path, Seq2SeqTrainingArguments, predict_with_generate=True, generation_max_length=4)
    trainer = Seq2SeqTrainer(model, args, train_dataset=data, eval_dataset=data, compute_metrics=metrics)
    trainer.train()
    result = trainer.evaluate()
    assert 0 <= result["eval_right"] <= 1
    ids = torch.stack([row["input_ids"] for row in data])
    expected = model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_length=4)
    assert np.array_equal(seen[0][:, :4], expected.numpy())
    assert np.all(seen[0][:, 4:] == model.config.pad_token_id)


# -------------------------------------------------------------------------------------------- memory and precision


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit"])
@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_gradient_checkpointing_changes_nothing(name: str, kwargs: Any, tmp_path: Path) -> None:
    data, states = any_examples(name), []
    for enabled in (False, True):
        model = trained(name, "mam", use_cache=False)
        changes = {CHECKPOINTING: enabled, f"{CHECKPOINTING}_kwargs": kwargs, "optim": "sgd", "learning_rate": 0.1}
        Trainer(model, arguments(tmp_path, **changes), train_dataset=data).train()
        states.append(snapshot(model))
    assert all(torch.allclose(states[0][key], states[1][key], atol=1e-5) for key in states[0])


@pytest.mark.parametrize("method", METHODS)
def test_autocast_in_the_trainer(method: str, tmp_path: Path) -> None:
    model, data = trained(method=CONFIGS[method]), marked_sentences()
    trainer = Trainer(model, arguments(tmp_path, bf16=True, max_steps=60), train_dataset=data, eval_dataset=data)
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.9 * start
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("name", ["bert", "llama", "t5", "vit"])
def test_autocast_by_hand(name: str) -> None:
    model = trained(name, "mam")
    batch = {key: torch.stack([row[key] for row in any_examples(name)]) for key in any_examples(name)[0]}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=1e-2), []
    for _ in range(10):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_whole_model_trains_too(tmp_path: Path) -> None:
    model = build("bert", "classification")
    before = snapshot(model)
    Trainer(model, arguments(tmp_path, max_steps=2), train_dataset=marked_sentences()).train()
    assert any("attention" in name for name in changed(before, model))
