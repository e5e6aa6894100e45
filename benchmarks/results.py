"""What does an experiment return, and under what circumstances was it measured?"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import Rounds, median, spread

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Run:
    """How thorough a run is.

    Args:
        quick: Fewer rounds and fewer sizes: minutes become seconds, noise doubles.
        peer: Whether PEFT is installed and wanted.
        processes: In how many processes, one after the other, the experiment that receives this is repeated.
    """

    quick: bool = False
    peer: bool = True
    processes: int = 1

    def rounds(self, full: int = 45, quick: int = 5) -> Rounds:
        """Rounds of a comparison: the given number, more where the calls are short."""
        least, seconds = (quick, 0.5) if self.quick else (full, 3.0)
        return Rounds(-(-least // self.processes), seconds / self.processes)


@dataclass
class Result:
    """One measured figure.

    Args:
        case: What was measured; goals and other libraries' figures are found by it.
        values: One per round, or one.
        library: "ours", "PEFT", or "by hand" for functions written for this one case.
        unit: "ratio", "ms", "graphs", "MiB" or "" where it needs none.
        facts: Shapes and whatever else is needed to read the figure.
        output: Some numbers of the output: libraries that were given the same weights must agree in them.
    """

    case: str
    values: list[float]
    library: str = "ours"
    unit: str = "ratio"
    facts: dict[str, Any] = field(default_factory=dict)
    output: list[float] | None = None
    experiment: str = ""

    @property
    def value(self) -> float:
        """The median."""
        return median(self.values)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        low, high = spread(self.values)
        return {**dataclasses.asdict(self), "median": self.value, "low": low, "high": high}


def environment(run: Run) -> dict[str, Any]:
    """Versions, machine and commit."""
    versions: dict[str, str | None] = {}
    for name in ("torch", "transformers", "peft", "safetensors", "adapterhub"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "changed files": len((_git("status", "--porcelain", "src", "benchmarks") or "").splitlines()),
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "quick": run.quick,
    }


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
