"""What the Trainer asks of a model, its class or its forward: do flexible models answer for their active head?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from adapters import AdapterTrainer, AutoAdapterModel, MultiTask
from tests.heads.custom import Custom
from tests.heads.models import PAIRS, add_head, inputs_for, labels_for, tiny
from tests.tiny import build
from tests.training.toy import arguments, changed, marked_sentences, snapshot, trained

SMOOTHING = 0.1
ONE_LOGIT_PER_LABEL = [pair for pair in PAIRS if pair[1] not in ("question_answering", "dependency_parsing")]
TOKENS = [("bert", "masked_lm"), ("bert", "causal_lm"), ("llama", "causal_lm"), ("t5", "seq2seq_lm")]
COUNTED = [*TOKENS, ("bert", "classification"), ("bert", "multiple_choice"), ("vit", "image_classification")]
AVERAGED = [("bert", "tagging"), ("bert", "question_answering")]


def trainable(model_type: str, head_type: str, **config: Any) -> Any:
    """A model with an adapter and a head to train, without dropout."""
    none = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate", "dropout"), 0.0)
    model = tiny(model_type, **none, **config)
    torch.manual_seed(1)
    model.add_adapter("h", config="lora")
    add_head(model, head_type, "h")
    model.train_adapter("h")
    return model


@pytest.mark.filterwarnings("ignore:Label smoothing is not compatible with multi-label:UserWarning")
@pytest.mark.parametrize("trainer", [Trainer, AdapterTrainer])
@pytest.mark.parametrize(("model_type", "head_type"), ONE_LOGIT_PER_LABEL)
def test_smoothed_labels(model_type: str, head_type: str, trainer: Any, tmp_path: Path) -> None:
    model = trainable(model_type, head_type)
    model.eval()
    batch = {**inputs_for(model, head_type), **labels_for(head_type)}
    labels = batch["labels"]
    made = trainer(model, arguments(tmp_path, label_smoothing_factor=SMOOTHING), train_dataset=[1])
    if head_type in ("seq2seq_lm",):  # what the data collator does
        batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    with torch.no_grad():
        got = made.compute_loss(model, dict(batch))
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    if head_type == "causal_lm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    if head_type == "multilabel_classification":
        want = binary_cross_entropy_with_logits(logits, labels.float())
    else:
        want = cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=SMOOTHING)
    torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:Label smoothing is not compatible with multi-label:UserWarning")
def test_several_labels_are_not_smoothed(tmp_path: Path) -> None:
    model = trainable("bert", "classification")
    add_head(model, "multilabel_classification", "many")
    args = arguments(tmp_path, label_smoothing_factor=SMOOTHING)
    assert Trainer(model, args, train_dataset=[1]).label_smoother is None
    model.active_head = "h"
    assert Trainer(model, args, train_dataset=[1]).label_smoother is not None
    image = tiny("vit")
    image.add_image_classification_head("many", num_labels=3, multilabel=True)
    assert image.config.problem_type == "multi_label_classification"


def test_several_labels_of_a_plain_class_stay_several(tmp_path: Path) -> None:
    plain = build("bert", "classification", adapted=False, problem_type="multi_label_classification")
    plain.save_pretrained(tmp_path)
    model = AutoAdapterModel.from_pretrained(tmp_path)
    given = {key: value for key, value in inputs_for(model).items() if key != "word_starts"}
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    ours, theirs = model.eval()(**given, labels=labels), plain(**given, labels=labels)
    torch.testing.assert_close(ours.loss, theirs.loss)


def examples(model: Any, head_type: str) -> list[dict[str, torch.Tensor]]:
    """Four rows: of tokens, some have far fewer labels than others; where heads average, all have as many."""
    batch = {**inputs_for(model, head_type, rows=4), **labels_for(head_type, rows=4)}
    if head_type.endswith("_lm"):
        batch["labels"][0, 2:] = batch["labels"][1, 4:] = -100
    if head_type == "tagging":
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    if head_type == "question_answering":
        batch["end_positions"] = batch["start_positions"] + 1
    return [{key: value[row] for key, value in batch.items()} for row in range(4)]


@pytest.mark.parametrize("trainer", [Trainer, AdapterTrainer])
@pytest.mark.parametrize(("model_type", "head_type"), [*COUNTED, *AVERAGED])
def test_accumulated_gradients_are_those_of_one_batch(
    model_type: str, head_type: str, trainer: Any, tmp_path: Path
) -> None:
    trained = []
    for size in (4, 2, 1):
        model = trainable(model_type, head_type)
        before = snapshot(model)
        data = examples(model, head_type)
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size, "max_steps": 1}
        args = arguments(tmp_path, optim="sgd", learning_rate=1.0, max_grad_norm=0.0, **changes)
        trainer(model, args, train_dataset=data).train()
        assert changed(before, model)
        trained.append(snapshot(model))
    for other in trained[1:]:
        for name, tensor in trained[0].items():
            torch.testing.assert_close(other[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("model_type", "head_type"), COUNTED)
def test_losses_are_divided_by_the_labels_of_the_whole_step(model_type: str, head_type: str) -> None:
    model = trainable(model_type, head_type)
    model.eval()
    assert model.accepts_loss_kwargs
    given, labels = inputs_for(model, head_type), labels_for(head_type)
    shifted = labels["labels"][:, 1:] if head_type == "causal_lm" else labels["labels"]
    mean = model(**given, **labels).loss
    for count in (17, torch.tensor(17)):
        torch.testing.assert_close(model(**given, **labels, num_items_in_batch=count).loss, mean * shifted.numel() / 17)


def test_heads_that_average_say_so() -> None:
    model = tiny("bert")
    assert not model.accepts_loss_kwargs
    for _, head_type in AVERAGED:
        add_head(model, head_type, head_type)
        assert not model.accepts_loss_kwargs
    model.register_custom_head("mine", Custom)
    model.add_custom_head("mine", "mine")
    assert not model.accepts_loss_kwargs
    add_head(model, "classification", "a")
    assert model.accepts_loss_kwargs
    model.active_head = ["a", "tagging"]
    assert not model.accepts_loss_kwargs


@pytest.mark.parametrize(("model_type", "head_type"), PAIRS)
def test_only_causal_heads_have_the_name_of_a_causal_class(model_type: str, head_type: str) -> None:
    model = tiny(model_type)
    add_head(model, head_type)
    causal = head_type == "causal_lm"
    assert (model._get_name() in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) == causal
    assert (model.loss_type == "ForCausalLM") == causal
    assert repr(model).startswith(f"{type(model).__name__}(")


def test_tasks_train_and_are_predicted(tmp_path: Path) -> None:
    model = tiny("bert")
    for name in "ab":
        model.add_adapter(name, config="lora")
        add_head(model, "classification", name)
    model.train_adapter(MultiTask("a", "b"))
    tasks = torch.tensor([0, 1, 1, 0])
    batch = {**inputs_for(model, rows=4), "labels": 1 + tasks, "task_ids": tasks}
    data = [{key: value[row] for key, value in batch.items()} for row in range(4)]
    before = snapshot(model)
    trainer = AdapterTrainer(model, arguments(tmp_path, max_steps=2), train_dataset=data, eval_dataset=data)
    start = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert {f"heads.{name}.4.weight" for name in "ab"} <= changed(before, model)
    assert trainer.evaluate()["eval_loss"] < start
    prediction = trainer.predict(data)
    assert prediction.metrics["test_loss"] < start
    want = model.eval()(**batch).logits.detach()
    torch.testing.assert_close(torch.as_tensor(prediction.predictions), want)
    assert prediction.label_ids.tolist() == batch["labels"].tolist()


@pytest.mark.parametrize("kind", ["flexible", "plain"])
def test_sentences_of_one_length_stand_together(kind: str, tmp_path: Path) -> None:
    model = trainable("bert", "classification") if kind == "flexible" else trained()
    lengths = [2, 5, 3, 6, 2, 6, 3, 5]
    data = [{**row, "length": size} for row, size in zip(marked_sentences(len(lengths)), lengths)]
    seen: list[list[int]] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        sizes = [int(row["attention_mask"].sum()) for row in rows]
        seen.append(sizes)
        longest = max(sizes)
        words = {key: torch.stack([row[key][:longest] for row in rows]) for key in ("input_ids", "attention_mask")}
        return {**words, "labels": torch.stack([row["labels"] for row in rows])}

    for row, size in zip(data, lengths):
        row["attention_mask"] = (torch.arange(len(row["input_ids"])) < size).long()
    changes = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2, "max_steps": 4}
    before = snapshot(model)
    Trainer(model, arguments(tmp_path, **changes), train_dataset=data, data_collator=collate).train()
    assert changed(before, model)
    assert sorted(map(sorted, seen)) == [[2, 2], [3, 3], [5, 5], [6, 6]]


def test_the_stock_trainer_leaves_flexible_models_their_columns(tmp_path: Path) -> None:
    trainer = Trainer(trainable("bert", "classification"), arguments(tmp_path))
    trainer._set_signature_columns_if_needed()
    assert {"input_ids", "attention_mask", "labels", "task_ids"} <= set(trainer._signature_columns)
