"""Tasks, languages, data sets and metrics: what may be named, and what is meant."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from .. import names
from ..data import load
from ..db import schema
from ..db.engine import insert_missing

__all__ = ["METRICS", "Taxonomy", "canonical_metric", "higher_is_better", "read", "seed"]

# Metrics by the name used here: (other spellings, whether higher is better, lowest and highest value or None).
METRICS: Mapping[str, tuple[tuple[str, ...], bool, tuple[float | None, float | None]]] = {
    "accuracy": (("acc", "exact match accuracy"), True, (0, 100)),
    "f1": (("f1 score", "f1-score", "macro f1", "micro f1", "f1_macro", "f1_micro"), True, (0, 100)),
    "precision": ((), True, (0, 100)),
    "recall": ((), True, (0, 100)),
    "exact_match": (("em", "exact match"), True, (0, 100)),
    "matthews": (("matthews_correlation", "mcc", "matthews correlation"), True, (-100, 100)),
    "pearson": (("pearsonr", "pearson correlation"), True, (-100, 100)),
    "spearman": (("spearmanr", "spearman correlation"), True, (-100, 100)),
    "bleu": (("sacrebleu",), True, (0, 100)),
    "rouge1": (("rouge-1",), True, (0, 100)),
    "rouge2": (("rouge-2",), True, (0, 100)),
    "rougel": (("rouge-l", "rouge_l"), True, (0, 100)),
    "uas": ((), True, (0, 100)),
    "las": ((), True, (0, 100)),
    "auc": (("roc_auc", "auroc"), True, (0, 100)),
    "perplexity": (("ppl",), False, (0, None)),
    "loss": (("eval_loss",), False, (None, None)),
    "mse": (("mean squared error",), False, (0, None)),
    "mae": (("mean absolute error",), False, (0, None)),
    "wer": (("word error rate",), False, (0, None)),
}
_SPELLINGS = {spelling: name for name, (others, _, _) in METRICS.items() for spelling in (name, *others)}


def canonical_metric(name: str) -> str:
    """The name used here for a metric; one that is not known keeps its own, in lower case."""
    plain = " ".join(name.lower().replace("eval_", "").split())
    return _SPELLINGS.get(plain, _SPELLINGS.get(plain.replace("_", " "), plain))[:64]


def higher_is_better(metric: str) -> bool:
    """The direction of a metric; of an unknown one it is supposed that more is better."""
    return METRICS[metric][1] if metric in METRICS else True


@dataclass(frozen=True)
class Taxonomy:
    """Tasks and subtasks, as rows of their tables."""

    tasks: Mapping[str, Mapping[str, Any]]
    subtasks: Mapping[tuple[str, str], Mapping[str, Any]]

    @classmethod
    @functools.cache
    def packaged(cls) -> Taxonomy:
        """The taxonomy that comes with the hub: that of the old AdapterHub, with its slips mended."""
        data = load("taxonomy.json")
        return cls.of(data["tasks"], data["subtasks"])

    @classmethod
    def of(cls, tasks: Any, subtasks: Any) -> Taxonomy:
        """From rows."""
        return cls({row["id"]: row for row in tasks}, {(row["task"], row["id"]): row for row in subtasks})

    def lookalike(self, task: str) -> str | None:
        """A task that another name looks like; None of one that is known, in whatever case."""
        if task.lower() in self.tasks:
            return None
        wanted = names.skeleton(task)
        return next((known for known in self.tasks if names.skeleton(known) == wanted), None)

    def type_of(self, task: str | None, subtask: str | None = None) -> str | None:
        """`text_task` or `text_lang`; None of an unknown task."""
        row = self.subtasks.get((task or "", subtask or "")) or self.tasks.get(task or "")
        return row["type"] if row else None

    def place_of_dataset(self, dataset: str) -> tuple[str, str] | None:
        """Task and subtask of a data set's id on the Hugging Face hub, such as `glue/sst2` or `imdb`."""
        return _datasets(self).get(_dataset_key(dataset))

    def metric(self, name: str) -> str:
        """The name used here for a metric."""
        return canonical_metric(name)

    def near(self, task: str, subtask: str | None = None) -> list[str]:
        """Places whose names are like a given one."""
        known = [f"{task}/{subtask}" for task, subtask in self.subtasks] + list(self.tasks)
        return difflib.get_close_matches(f"{task}/{subtask}" if subtask else task, known, n=3, cutoff=0.6)


@functools.lru_cache(maxsize=8)
def _by_dataset(rows: tuple[tuple[str, str, str], ...]) -> dict[str, tuple[str, str]]:
    return {_dataset_key(dataset): (task, subtask) for task, subtask, dataset in reversed(rows)}


def _datasets(taxonomy: Taxonomy) -> dict[str, tuple[str, str]]:
    rows = (
        (task, subtask, row["datasets_id"]) for (task, subtask), row in taxonomy.subtasks.items() if row["datasets_id"]
    )
    return _by_dataset(tuple(rows))


def _dataset_key(dataset: str) -> str:
    return dataset.lower().replace("nyu-mll/", "").replace("stanfordnlp/", "").replace("-", "").replace("_", "")


async def read(conn: AsyncConnection) -> Taxonomy:
    """The taxonomy as the hub has it now."""
    tasks = (await conn.execute(sa.select(schema.task))).mappings().all()
    subtasks = (await conn.execute(sa.select(schema.subtask))).mappings().all()
    return Taxonomy.of(tasks, subtasks)


async def seed(conn: AsyncConnection) -> None:
    """Adds what comes with the hub and is not there yet; the architectures of the old hub become what they were."""
    data = load("taxonomy.json")
    await insert_missing(conn, schema.task, data["tasks"])
    await insert_missing(conn, schema.subtask, data["subtasks"])
    await insert_missing(conn, schema.architecture, data["architectures"])
    for row in data["architectures"]:
        same = sa.update(schema.architecture).where(schema.architecture.c.name == row["name"])
        await conn.execute(same.values(config=row["config"]))
