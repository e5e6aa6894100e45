"""Run experiments, print the table, keep the raw figures: `python -m benchmarks [--quick] [--only NAME]`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import multiprocessing
import sys
import time
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import benchmarks.models  # noqa: F401  (torch and transformers, once for all processes)
from benchmarks import report
from benchmarks.results import ROOT, Result, Run, environment

EXPERIMENTS = (
    "forward",
    "training",
    "mixed",
    "parallel",
    "lifecycle",
    "generation",
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


def in_own_process(name: str, side: str, run: Run) -> tuple[list[Result], str | None]:
    """Run one side of an experiment in a new process, with a line for every result; also returns what went wrong."""
    fork = run.quick and "fork" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("fork" if fork else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, name, side, run))
    process.start()
    sender.close()
    results: list[Result] = []
    error: str | None = "The process ended without a word."
    try:
        while True:
            message = receiver.recv()
            if not isinstance(message, Result):
                error = message
                break
            results.append(message)
            print(f"  {message.case:<58} {message.library:<8} {message.value:8.3f} {message.unit}", flush=True)
    except EOFError:
        pass
    process.join()
    return results, error


def merge(results: list[Result], found: list[Result]) -> None:
    """Add what a process found; values of a case that is there already go to that case."""
    known = {(result.experiment, result.case, result.library): result for result in results}
    for result in found:
        if (old := known.get((result.experiment, result.case, result.library))) is not None:
            old.values += result.values
        else:
            results.append(result)


def _child(sender: Connection, name: str, side: str, run: Run) -> None:
    torch.set_num_threads(1)
    try:
        for result in getattr(importlib.import_module(f"benchmarks.experiments.{name}"), side)(run):
            result.experiment = name
            sender.send(result)
        sender.send(None)
    except Exception:
        sender.send(traceback.format_exc())


if __name__ == "__main__":
    sys.exit(main())
