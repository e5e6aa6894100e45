"""Writes the hub's packaged taxonomy from the old AdapterHub's YAML files (Apache-2.0): `hub_taxonomy.py FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

TARGET = Path(__file__).parents[1] / "src/adapterhub/data/taxonomy.json"
METRICS = {"f1": "f1", "pearson correlation": "pearson", "spearmanr": "spearman", "rouge-2": "rouge2", "bleu": "bleu"}


def main(folder: Path) -> None:
    """Reads all, mends what is known to be wrong, writes one JSON file."""
    tasks = [task(path, data) for path, data in read(folder / "tasks")]
    taxonomy = {
        "license": "Apache-2.0, Copyright 2020-2022 The AdapterHub Team and Contributors",
        "tasks": sorted(tasks, key=lambda row: (row["type"], row["id"])),
        "subtasks": [subtask(path, data) for path, data in read(folder / "subtasks")],
        "architectures": [architecture(data) for _, data in read(folder / "architectures")],
    }
    TARGET.write_text(json.dumps(taxonomy, indent=1, ensure_ascii=False) + "\n")
    print({key: len(value) for key, value in taxonomy.items() if isinstance(value, list)})


def read(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every file, with all scalars as texts: Norwegian is `no`, not false."""
    yaml = YAML(typ="base")
    return [(path, yaml.load(path)) for path in sorted(folder.rglob("*.y*ml"))]


def clean(text: Any) -> str:
    return " ".join(str(text or "").split())


def task(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": path.parent.name,
        "id": clean(data["task"]).strip('"'),  # one has a stray quotation mark
        "displayname": clean(data["displayname"]),
        "description": clean(data["description"]),
    }


def subtask(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    metric = data.get("metric") or {}
    name = clean(metric.get("name")).lower()
    return {
        "type": path.parent.name,
        "task": clean(data["task"]).strip('"'),
        "id": clean(data["subtask"]),
        "displayname": clean(data.get("displayname")) or clean(data["subtask"]),
        "description": clean(data.get("description")),
        "datasets_id": clean(data.get("hf_datasets_id")) or None,
        "url": clean(data.get("url")) or None,
        "citation": (data.get("citation") or "").strip() or None,
        "language": clean(data.get("language")) or None,
        "metric": METRICS.get(name, name) or None,
        "higher_is_better": clean(metric.get("higher_is_better")).lower() == "true" if metric else None,
    }


def architecture(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": data["name"],
        "displayname": clean(data["displayname"]),
        "description": clean(data["description"]),
        "citation": (data.get("citation") or "").strip() or None,
        "config": {key: typed(value) for key, value in data["config"].items()},
    }


def typed(value: Any) -> Any:
    """What a scalar of a config means: they are JSON."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    try:
        return json.loads(value)
    except (ValueError, TypeError):
        return value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
