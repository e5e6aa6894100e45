"""Measure the hub, print the table, keep the raw figures: `python -m benchmarks.hub [--quick] [--only NAME]`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.hub.experiments import EXPERIMENTS, Bench, Figure
from benchmarks.hub.servers import ROOT

HEADER = ("case", "goal", "hub", "met?", "made of")


def main() -> int:
    """Measure what the command line asks for; returns the exit status."""
    options = _parse()
    circumstances, found, failed = environment(options.quick), dict[str, list[Figure]](), []
    folder = Path(tempfile.mkdtemp(prefix="bench-hub-", dir=options.folder))
    bench = Bench(folder, options.quick)
    try:
        for name in options.only or EXPERIMENTS:
            print(f"\n{name}", flush=True)
            began, found[name] = time.perf_counter(), []
            try:
                for figure in EXPERIMENTS[name](bench):
                    found[name].append(figure)
                    print("  " + " | ".join(_row(figure)), flush=True)
            except Exception:
                failed.append(name)
                traceback.print_exc()
            print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    path = write(Path(options.out), circumstances, found)
    print(f"\n{table(found)}\nRaw figures: {path}")
    if failed:
        print(f"FAILED: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hub", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller files, 10,000 adapters")
    parser.add_argument("--only", action="append", choices=EXPERIMENTS, help="only this experiment; repeatable")
    parser.add_argument("--folder", help="where data are kept meanwhile: 12 GB, 1 GB with --quick")
    parser.add_argument("--out", default=ROOT / "results" / "benchmarks", help="folder of the results")
    return parser.parse_args()


def environment(quick: bool) -> dict[str, Any]:
    """Machine, versions and commit."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?"),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "quick": quick,
    }


def table(found: dict[str, list[Figure]]) -> str:
    """All figures as a markdown table."""
    rows = [HEADER, *(_row(figure) for figures in found.values() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _row(figure: Figure) -> tuple[str, ...]:
    unit = "" if figure.unit == "ratio" else f" {figure.unit}"
    digits = 2 if figure.unit in ("ratio", "s") else 1 if figure.unit == "ms" else 0
    goal = "" if figure.goal is None else f"{'>=' if figure.more else '<='} {figure.goal:g}{unit}"
    met = {None: "", True: "yes", False: "no"}[figure.met]
    facts = ", ".join(f"{key} {value:.4g}" for key, value in figure.facts.items() if not isinstance(value, str))
    return figure.case, goal, f"{figure.value:.{digits}f}{unit}", met, facts


def write(folder: Path, circumstances: dict[str, Any], found: dict[str, list[Figure]]) -> Path:
    """Write `hub-<date>.json` with all figures, and the table beside it; returns the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"hub-{circumstances['date'].replace(':', '').replace('+0000', 'Z')}.json"
    figures = {name: [dataclasses.asdict(figure) for figure in figures] for name, figures in found.items()}
    path.write_text(json.dumps({"environment": circumstances, "figures": figures}, indent=1) + "\n")
    lines = [f"- {key}: {value}" for key, value in circumstances.items()]
    path.with_suffix(".md").write_text("\n".join([*lines, "", table(found)]))
    return path


if __name__ == "__main__":
    sys.exit(main())
