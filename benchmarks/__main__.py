"""Run experiments, print the table, keep the raw figures: `python -m benchmarks [--quick] [--only NAME]`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import benchmarks.models  # noqa: F401  (torch and transformers, once for all processes)
from benchmarks import report
from benchmarks.processes import in_own_process
from benchmarks.results import ROOT, Result, Run, environment

EXPERIMENTS = (
    "forward",
    "training",
    "mixed",
    "parallel",
    "lifecycle",
    "generation",
    "real",
    "compilation",
    "files",
    "imports",
)


PROCESSES = {"forward": 3, "mixed": 3}
"""Experiments that a full run repeats in new processes: where memory lies moves ratios near 1 by 1-3 %."""


def main() -> int:
    """Run what the command line asks for; returns the exit status."""
    options = parse()
    torch.set_num_threads(1)
    run = Run(quick=options.quick, peer=not options.no_peft and importlib.util.find_spec("peft") is not None)
    circumstances = environment(run)
    start, results, failed = time.perf_counter(), list[Result](), list[str]()
    for name in options.only or EXPERIMENTS:
        for side in ("ours", "peft"):
            if side == "peft" and not (run.peer and has(name, side)):
                continue
            print(f"\n{name}, {'ours' if side == 'ours' else 'PEFT'}", flush=True)
            began = time.perf_counter()
            processes = 1 if run.quick else PROCESSES.get(name, 1)
            for _ in range(processes):
                found, error = in_own_process(name, side, replace(run, processes=processes))
                merge(results, found)
                if error:
                    failed.append(f"{name}, {side}")
                    print(error, file=sys.stderr)
                    break
            print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    path = report.write(Path(options.out), circumstances, results)
    print(f"\n{report.table(results)}\n{report.summary(results)}")
    print(f"{time.perf_counter() - start:.0f} s. Raw figures: {path}")
    if failed:
        print(f"FAILED: {'; '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and sizes: a minute or two, more noise")
    parser.add_argument("--only", action="append", choices=EXPERIMENTS, help="only this experiment; repeatable")
    parser.add_argument("--no-peft", action="store_true", help="leave PEFT out")
    parser.add_argument("--out", default=ROOT / "results" / "benchmarks", help="folder of the results")
    return parser.parse_args()


def has(name: str, side: str) -> bool:
    """Whether an experiment has this side."""
    return hasattr(importlib.import_module(f"benchmarks.experiments.{name}"), side)


def merge(results: list[Result], found: list[Result]) -> None:
    """Add what a process found; values of a case that is there already go to that case."""
    known = {(result.experiment, result.case, result.library): result for result in results}
    for result in found:
        if (old := known.get((result.experiment, result.case, result.library))) is not None:
            old.values += result.values
        else:
            results.append(result)


if __name__ == "__main__":
    sys.exit(main())
