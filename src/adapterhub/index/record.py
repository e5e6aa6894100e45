"""What the hub knows of one adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

__all__ = ["Evaluation", "Record"]


class Evaluation(NamedTuple):
    """One number that a card reports, at the place of the taxonomy it belongs to."""

    task: str | None
    subtask: str | None
    dataset: str | None
    split: str | None
    metric: str
    value: float


@dataclass
class Record:
    """An adapter as its files tell it. The fields are those columns of the table `adapter` that follow from files.

    Attributes:
        text: the words of the card, for the search alone.
    """

    library: str = "other"
    library_name: str | None = None
    pipeline_tag: str | None = None
    model_config: Mapping[str, Any] = field(default_factory=dict)
    type: str | None = None
    task: str | None = None
    subtask: str | None = None
    method: str | None = None
    config_name: str | None = None
    config_id: str | None = None
    config: Mapping[str, Any] | None = None
    base_model: str | None = None
    model_type: str | None = None
    model_class: str | None = None
    hidden_size: int | None = None
    layers: int | None = None
    reduction_factor: float | None = None
    rank: int | None = None
    non_linearity: str | None = None
    head_type: str | None = None
    parameters: int | None = None
    bytes: int = 0
    license: str | None = None
    languages: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    card: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""
    title: str = ""
    text: str = ""
    checks: list[dict[str, Any]] = field(default_factory=list)
    legacy_id: str | None = None
    evaluations: list[Evaluation] = field(default_factory=list)
    dependencies: dict[str, str] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """How many checks failed."""
        return sum(check["level"] == "error" for check in self.checks)

    def columns(self) -> dict[str, Any]:
        """The values of the table's columns, but for those that follow from the repository."""
        rest = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _ROWS}
        return {**rest, "errors": self.errors, "search": self.search_text()}

    def search_text(self) -> str:
        """What full-text search reads."""
        parts = [self.title, self.summary, self.task, self.subtask, self.method, self.config_name, self.base_model]
        parts += [self.model_type, self.license, self.legacy_id, *self.languages, *self.datasets, *self.tags, self.text]
        return " ".join(dict.fromkeys(part for part in parts if part)).lower()


_ROWS = ("evaluations", "dependencies", "text")
