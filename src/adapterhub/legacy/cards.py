"""The cards of the old hub: one YAML file per adapter, and what becomes of it in a repository of today."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..content import cards
from ..content.cards import InvalidCard
from ..facts.taxonomy import Taxonomy

__all__ = ["OldCard", "adapter_config", "read", "readme"]

_TEXTS = ("type", "task", "subtask", "model_type", "model_name", "author", "default_version")
_CONTACTS = ("url", "github", "twitter", "email")
_MAX_CARD = 64 << 10


@dataclass(frozen=True)
class OldCard:
    """A card, and the place it stood at: `adapters/<org>/<file>.yaml`."""

    org: str
    file: str
    data: Mapping[str, Any]

    @property
    def legacy_id(self) -> str:
        """Its name on the old hub."""
        return f"@{self.org}/{self.file}"

    @property
    def repo_name(self) -> str:
        """Its file's name, as far as a repository can have it."""
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.file)
        return re.sub(r"([.-])[.-]+", r"\1", name)[:96].strip(".-")

    @property
    def place(self) -> tuple[str, str, str]:
        """Base model, task and subtask."""
        return self.text("model_name"), self.text("task"), self.text("subtask")

    @property
    def versions(self) -> Sequence[Mapping[str, Any]]:
        """The versions of its weights, with their addresses and hashes."""
        return [{key: item[key] for key in _VERSION if key in item} for item in self.data["files"]]

    def text(self, key: str) -> str:
        """A text of the card; empty where it has none."""
        value = self.data.get(key)
        return " ".join(str(value).split()) if isinstance(value, (str, int, float)) else ""


_VERSION = ("version", "url", "sha1", "sha256", "score", "description")


def read(path: Path) -> OldCard:
    """The card in a file.

    Raises:
        InvalidCard: it is no YAML, or lacks something that every card of the old hub has.
    """
    if path.stat().st_size > _MAX_CARD:
        raise InvalidCard(f"the card is larger than {_MAX_CARD >> 10} KiB.")
    text = path.read_text(encoding="utf-8", errors="replace").removeprefix("---\n")
    data = cards.parse(f"---\n{text}\n---\n").data
    missing = [key for key in _TEXTS if not isinstance(data.get(key), (str, int, float))]
    config, files = data.get("config"), data.get("files")
    if not isinstance(config, dict) or not isinstance(config.get("using"), str):
        missing.append("config.using")
    if not isinstance(files, list) or not files or not all(_is_version(item) for item in files):
        missing.append("files with 'version' and 'url'")
    if missing:
        raise InvalidCard(f"it has no {', '.join(missing)}.")
    return OldCard(path.parent.name, path.stem, data)


def _is_version(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(key), (str, int, float)) for key in ("version", "url"))


def adapter_config(card: OldCard, architectures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What `adapter_config.json` says: the card's architecture, with the card's own sizes.

    Raises:
        InvalidCard: the architecture is not known.
    """
    own = dict(card.data["config"])
    using = own.pop("using")
    if using not in architectures:
        known = ", ".join(sorted(architectures))
        raise InvalidCard(f"config.using={using!r} is not one of the architectures {known}.")
    facts = {key: card.data.get(key) for key in ("hidden_size", "model_class", "model_name", "model_type")}
    return {"config": {**architectures[using], **own}, **facts, "name": card.text("subtask") or card.text("task")}


# ---- the new card ---------------------------------------------------------------------------------------------------


def readme(card: OldCard, full_name: str, taxonomy: Taxonomy) -> str:
    """A card of today with all that the old one says."""
    model, task, subtask = card.place
    parts = [
        f"---\n{_front_matter(_metadata(card, taxonomy))}---\n",
        f"# {card.file}: {task}/{subtask} for {model}",
        str(card.data.get("description") or f"An adapter for {model} at {task}/{subtask}.").strip(),
        "This card was taken over from the AdapterHub of 2020 to 2024, which kept no weights itself. They were at the "
        "addresses below; this repository has them once somebody adds them.",
        f"## Usage\n\n{_fenced(_usage(full_name, model), 'python')}",
        f"## Architecture & Training\n\n{_architecture(card, taxonomy)}",
        f"## Author\n\n{_author(card)}",
        f"## Versions\n\n{_versions(card)}",
    ]
    if citation := str(card.data.get("citation") or "").strip():
        parts.append(f"## Citation\n\n{_fenced(citation, 'bibtex')}")
    return "\n\n".join(parts).replace("---\n\n\n#", "---\n\n#") + "\n"


def _metadata(card: OldCard, taxonomy: Taxonomy) -> dict[str, Any]:
    model, task, subtask = card.place
    row = taxonomy.subtasks.get((task, subtask), {})
    found: dict[str, Any] = {
        "tags": ["adapter-transformers", f"adapterhub:{task}/{subtask}", card.text("model_type")],
        "library_name": "adapter-transformers",
        "base_model": model,
    }
    if card.text("type") == "text_lang":
        found["language"] = [task]
    if row.get("datasets_id"):
        found["datasets"] = [row["datasets_id"]]
    found |= {
        "legacy_id": card.legacy_id,
        "prediction_head": card.data.get("prediction_head") is True,
        "default_version": card.text("default_version"),
        "versions": card.versions,
        "dependencies": card.data.get("dependencies"),
        "results": _results(card, row),
    }
    return {key: value for key, value in found.items() if value not in (None, [], "")}


def _results(card: OldCard, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The score of the default version, by the metric of its data set."""
    default = card.text("default_version")
    scores = [item.get("score") for item in card.versions if str(item["version"]) == default]
    if not row.get("metric") or not scores or not isinstance(scores[0], (int, float)):
        return []
    dataset = {"dataset": row["datasets_id"]} if row.get("datasets_id") else {}
    return [{**dataset, "metric": row["metric"], "value": scores[0]}]


def _front_matter(data: Mapping[str, Any]) -> str:
    """YAML in which every text is quoted, so that no reader takes `no` for a truth value."""
    lines = []
    for key, value in data.items():
        items = value if isinstance(value, list) else None
        lines.append(f"{key}:" if items is not None else f"{key}: {_json(value)}")
        lines += [f"- {_json(item)}" for item in items or ()]
    return "\n".join(lines) + "\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _usage(full_name: str, model: str) -> str:
    return (
        "from adapters import AutoAdapterModel\n\n"
        f"model = AutoAdapterModel.from_pretrained({_json(model)})\n"
        f"model.load_adapter({_json(full_name)}, set_active=True)"
    )


def _fenced(text: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _architecture(card: OldCard, taxonomy: Taxonomy) -> str:
    config = ", ".join(f"{key}: {_json(value)}" for key, value in card.data["config"].items())
    lines = [f"- Architecture: {config}", f"- Prediction head: {'yes' if card.data.get('prediction_head') else 'no'}"]
    row = taxonomy.subtasks.get(card.place[1:], {})
    if row.get("url"):
        lines.append(f"- Data set: <{row['url']}>")
    return "\n".join(lines)


def _author(card: OldCard) -> str:
    contacts = [f"- {key}: {card.text(key)}" for key in _CONTACTS if card.text(key)]
    return "\n".join([card.text("author"), *([""] if contacts else []), *contacts])


def _versions(card: OldCard) -> str:
    default = card.text("default_version")
    rows = ["| version | address | SHA-256 | score | |", "|---|---|---|---|---|"]
    for item in card.versions:
        name = str(item["version"]) + (" (default)" if str(item["version"]) == default else "")
        cells = [name, item["url"], item.get("sha256", ""), item.get("score", ""), item.get("description", "")]
        rows.append("| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)
