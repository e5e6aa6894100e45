"""One process for each experiment and library. Not in `__main__`: a new process cannot import what stands there."""

from __future__ import annotations

import importlib
import multiprocessing
import traceback
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.results import Result, Run


def in_own_process(name: str, side: str, run: Run) -> tuple[list[Result], str | None]:
    """Run one side of an experiment in a new process, with a line for every result; also returns what went wrong."""
    fork = run.quick and "fork" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("fork" if fork else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(sender, name, side, run))
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


def child(sender: Connection, name: str, side: str, run: Run) -> None:
    """What the new process does: send each result, and at last None or what went wrong."""
    torch.set_num_threads(1)
    try:
        for result in getattr(importlib.import_module(f"benchmarks.experiments.{name}"), side)(run):
            result.experiment = name
            sender.send(result)
        sender.send(None)
    except Exception:
        sender.send(traceback.format_exc())
