"""What came out? A table with the goals, and all raw figures as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS
from benchmarks.measuring import spread
from benchmarks.results import Result

LIBRARIES = ("ours", "PEFT", "by hand")
HEADER = ("case", "goal", "ours", "PEFT", "by hand", "met?")


def table(results: Sequence[Result]) -> str:
    """A markdown table for each experiment: the figures are medians ± half the width of their 95 % interval."""
    text = []
    for experiment in dict.fromkeys(result.experiment for result in results):
        own = [result for result in results if result.experiment == experiment]
        found = {(r.case, r.library): r for r in own}
        rows = [_row(case, found) for case in dict.fromkeys(result.case for result in own)]
        text.append(f"## {experiment}\n\n{_aligned([HEADER, *rows])}\n")
    return "\n".join(text)


def _row(case: str, found: dict[tuple[str, str], Result]) -> tuple[str, ...]:
    cells = [_figure(found.get((case, library))) for library in LIBRARIES]
    unit = next(r.unit for (name, _), r in found.items() if name == case)
    goal = GOALS.get(case)
    shown = "" if goal is None else f"<= {goal:g}"
    return (case if unit == "ratio" else f"{case} [{unit}]", shown, *cells, _met(goal, found.get((case, "ours"))))


def _figure(result: Result | None) -> str:
    if result is None:
        return "-"
    if math.isinf(result.value):
        return "fails"
    digits = 0 if result.unit == "graphs" else 3 if result.unit == "ms" or len(result.values) == 1 else 2
    text = f"{result.value:.{digits}f}"
    if len(result.values) == 1:
        return text
    low, high = spread(result.values)
    return f"{text} ± {(high - low) / 2:.{digits}f}"


def _met(goal: float | None, result: Result | None) -> str:
    if goal is None or result is None:
        return ""
    if result.value <= goal:
        return "yes"
    return "no, within noise" if spread(result.values)[0] <= goal else "no"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def summary(results: Sequence[Result]) -> str:
    """How many goals were met, and which outputs disagree."""
    own = [r for r in results if r.library == "ours" and r.case in GOALS]
    met = sum(r.value <= GOALS[r.case] for r in own)
    lines = [f"{met} of {len(own)} goals measured here are met; goals that exist: {len(GOALS)}."]
    lines += [f"NOT COMPARABLE: {case}: ours and PEFT compute different outputs." for case in disagreements(results)]
    return "\n".join(lines)


def disagreements(results: Sequence[Result]) -> list[str]:
    """Cases in which two libraries were given the same weights and computed different outputs."""
    outputs: dict[str, list[list[float]]] = {}
    for result in results:
        if result.output is not None and result.library in ("ours", "PEFT"):
            outputs.setdefault(result.case, []).append(result.output)
    return [case for case, both in outputs.items() if not all(_close(both[0], other) for other in both[1:])]


def _close(a: list[float], b: list[float]) -> bool:
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-3, abs_tol=1e-3) for x, y in zip(a, b))


def write(folder: Path, environment: dict[str, Any], results: Sequence[Result]) -> Path:
    """Write `<date>-<commit>.json` with every raw figure and the table beside it; returns the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = environment["date"].replace(":", "").replace("+0000", "Z")
    path = folder / f"{stamp}-{(environment['commit'] or 'unknown')[:10]}.json"
    goals = {result.case: GOALS[result.case] for result in results if result.case in GOALS}
    data = {"environment": environment, "goals": goals, "results": [result.as_dict() for result in results]}
    path.write_text(json.dumps(data, indent=1) + "\n")
    lines = [f"- {key}: {value}" for key, value in environment.items()]
    path.with_suffix(".md").write_text("\n".join([*lines, "", table(results), summary(results), ""]))
    return path
