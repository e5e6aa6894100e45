"""How is one method trained? With the stock transformers.Trainer, in a process whose memory is its own.

Usage: python demo/learn.py OUT METHOD SEED -- writes the adapter to OUT/adapters and the figures to OUT/runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import tempfile
from pathlib import Path
from typing import Any

import base
import torch
from base import Settings, Texts
from methods import METHODS, REFERENCES, Method
from transformers import DataCollatorWithPadding, ProgressCallback, Trainer, TrainingArguments, set_seed

import adapters

# texts of like length in one batch, so that little is padding; the argument was renamed within transformers 5
GROUPED: dict[str, Any] = (
    {"train_sampling_strategy": "group_by_length"}
    if "train_sampling_strategy" in TrainingArguments.__dataclass_fields__
    else {"group_by_length": True}
)


class Bar(ProgressCallback):
    """The Trainer's progress bar, with the loss on the bar instead of on lines of its own."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the training loss."""
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix_str(f"loss {float(logs['loss']):.2f}")


def build(method: str, settings: Settings, labels: tuple[str, ...]) -> Any:
    """A fresh base model with a prediction head, and the method's adapter, ready for training."""
    model = adapters.AutoAdapterModel.from_pretrained(settings.model)
    head = {"num_labels": len(labels), "layers": 1, "id2label": dict(enumerate(labels))}
    if method in REFERENCES:
        model.add_classification_head(method, **head)
        if method == "head":
            model.freeze_model(True)
    else:
        model.add_adapter(method, config=METHODS[method].config)
        model.add_classification_head(method, **head)
        model.train_adapter(method)
    return model


def train(out: Path, method: str, seed: int) -> dict[str, Any]:
    """Train one method, save it, and return its figures."""
    settings, texts = Settings.load(out), Texts.load(out)
    tokenizer = base.load_tokenizer(settings)
    train_set = base.encode(texts.train, tokenizer, settings)

    peak = rehearse(method, settings, texts.labels, train_set, tokenizer)
    set_seed(seed)
    model = build(method, settings, texts.labels)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    steps = -(-len(train_set) // settings.batch_size) * settings.epochs
    seconds = fit(model, METHODS[method], settings, train_set, tokenizer, steps, seed=seed)

    logits = base.predict(model, [text for text, _ in texts.test], tokenizer, settings)
    return {
        "method": method,
        "seed": seed,
        "trained_parameters": trained,
        "all_parameters": sum(p.numel() for p in model.parameters()),
        **base.scores(logits.argmax(-1).tolist(), [label for _, label in texts.test]),
        "train_seconds": seconds,
        "peak_bytes": peak,
        "file_bytes": save(model, method, base.folder_of(out, method, seed), logits),
    }


def fit(
    model: Any,
    method: Method,
    settings: Settings,
    train_set: list[dict[str, Any]],
    tokenizer: Any,
    steps: int,
    seed: int = 0,
    bar: bool = True,
) -> float:
    """Train for so many steps; return the seconds that it took."""
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            seed=seed,
            max_steps=steps,
            learning_rate=method.learning_rate,
            warmup_steps=steps // 16,
            per_device_train_batch_size=settings.batch_size,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=False,
            **GROUPED,
        )
        trainer = Trainer(model, arguments, DataCollatorWithPadding(tokenizer), train_dataset=train_set)
        trainer.remove_callback(ProgressCallback)
        if bar:
            trainer.add_callback(Bar)
        return float(trainer.train().metrics["train_runtime"])


def rehearse(
    method: str, settings: Settings, labels: tuple[str, ...], train_set: list[dict[str, Any]], tokenizer: Any
) -> int | None:
    """Peak memory of training in bytes, above that before the model was loaded: three steps on the longest texts.

    For these steps the C library gives freed memory back at once. It does not while training is timed, because that
    costs time; what it then keeps for later depends on the order of batches more than on the method.
    """
    longest = sorted(train_set, key=lambda example: len(example["input_ids"]))[-3 * settings.batch_size :]
    keep_freed_memory(False)
    base.reset_peak_memory()
    before = base.peak_memory()
    model = build(method, settings, labels)
    base.reset_peak_memory()
    fit(model, METHODS[method], settings, longest, tokenizer, steps=3, bar=False)
    after = base.peak_memory()
    keep_freed_memory(True)
    return None if before is None or after is None else after - before


def keep_freed_memory(keep: bool) -> None:
    """Tell glibc to reuse freed blocks, or to return each large one to the system; nothing with another C library."""
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-1, 2**29 if keep else 2**17)  # M_TRIM_THRESHOLD
        mallopt(-3, 2**25 if keep else 2**17)  # M_MMAP_THRESHOLD


def save(model: Any, method: str, folder: Path, logits: torch.Tensor) -> int:
    """Save what was trained, and its first predictions; return the bytes that the base model lacks."""
    if method == "full":  # a whole model: only measured, not kept
        with tempfile.TemporaryDirectory() as scratch:
            model.save_pretrained(scratch)
            return size(Path(scratch))
    if method == "head":
        model.save_head(str(folder), method)
    else:
        model.save_adapter(str(folder), method)
    total = size(folder)
    torch.save(logits[: base.COMPARED], folder / "logits.pt")
    return total


def size(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    base.quiet()
    folder, method, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    base.write_json(folder / "runs" / f"{method}-{seed}.json", train(folder, method, seed))
