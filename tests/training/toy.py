"""Tasks that tiny models learn in a moment, and arguments for trainers that train on them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainingArguments

from adapters import BertAdapterModel, T5AdapterModel
from tests.tiny import EOS, LABELS, LENGTH, TINY_MODELS, VOCAB, build, config, inputs, labels

Examples = list[dict[str, Tensor]]

CHECKPOINTING = next(
    field.name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    for field in fields(TrainingArguments)
    if field.name == name
)
"""What the argument is called in this version of transformers."""


def arguments(folder: Path | str, cls: type[Any] = TrainingArguments, **changes: Any) -> Any:
    """Quiet arguments for a run of 8 steps on the CPU that saves nothing."""
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 8,
        "logging_strategy": "no",
        "save_strategy": "no",
        "seed": 0,
    }
    return cls(**{**options, **changes})


def marked_sentences(count: int = 32) -> Examples:
    """Classify a sentence by its second token; a column that no model takes is there too."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(10, VOCAB, (count, LENGTH), generator=generator)
    classes = torch.randint(LABELS, (count,), generator=generator)
    ids[:, 1] = 4 + classes
    ids[:, -1] = EOS
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label, "line": torch.tensor(i)}
        for i, (row, label) in enumerate(zip(ids, classes))
    ]


def repeated_words(count: int = 16) -> Examples:
    """Say the first token of the input three times."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(10, 16, (count, LENGTH), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row[:1].repeat(3)} for row in ids]


def any_examples(name: str, count: int = 16) -> Examples:
    """Inputs and labels for the classification head, or else for the language model, of an architecture."""
    task = "classification" if TINY_MODELS[name].kind in ("encoder", "image") else "lm"
    given = {**inputs(name, task, rows=count), "labels": labels(name, task, rows=count)}
    return [{key: value[row] for key, value in given.items()} for row in range(count)]


def trained(name: str = "bert", method: str = "lora", **changes: Any) -> Any:
    """A plain class with one adapter "a" that is to be trained."""
    task = "classification" if TINY_MODELS[name].kind in ("encoder", "image") else "lm"
    model = build(name, task, **changes)
    torch.manual_seed(0)
    model.add_adapter("a", config=method)
    model.train_adapter("a")
    return model


def flexible(method: str = "lora", **changes: Any) -> Any:
    """A BertAdapterModel with adapter and classification head "a"."""
    torch.manual_seed(0)
    model = BertAdapterModel(config("bert", **changes))
    model.add_adapter("a", config=method)
    model.add_classification_head("a", num_labels=LABELS)
    model.train_adapter("a")
    return model


def flexible_t5() -> Any:
    """A T5AdapterModel with adapter and language model head "a"."""
    torch.manual_seed(0)
    model = T5AdapterModel(config("t5"))
    model.add_adapter("a", config="lora")
    model.add_seq2seq_lm_head("a")
    model.train_adapter("a")
    return model


def snapshot(model: Any) -> dict[str, Tensor]:
    """A copy of all tensors of a model."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: Any) -> set[str]:
    """Names of the tensors that are no longer what they were."""
    after = model.state_dict()
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
