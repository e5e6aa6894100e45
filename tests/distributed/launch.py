"""Processes that work together, as torchrun starts them: on the CPU with gloo, or each on a GPU of its own.

What they need is imported once; then they run one check after the other. A check is a function of checks.py: every
process runs it, and what it returns comes back. Where one fails or hangs, all are ended, and others start for the next.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from multiprocessing.connection import Connection, wait
from typing import Any

WORLD = 2
SECONDS = float(os.environ.get("ADAPTERS_DISTRIBUTED_SECONDS", "300"))
"""How long a check may take; imports are part of the first one."""

PRELOADED = ["torch.distributed.fsdp", "torch.distributed.tensor", "transformers.trainer", "tests.distributed.checks"]

IGNORED: tuple[tuple[str, str], ...] = (
    # gloo has no notion of devices that one could give it.
    ("No device id is provided", "torch.distributed"),
)
"""Warnings of third parties, by the message's beginning and the module."""


class Failed(AssertionError):
    """A check failed in one of the processes, or took too long."""


class Processes:
    """`WORLD` processes with a process group, which find each other by a file: no port can be taken by others."""

    def __init__(self) -> None:
        self._workers: list[Any] = []
        self._ends: list[Connection] = []

    def run(self, check: str, **given: Any) -> list[Any]:
        """What the function `check` of checks.py returns in every process, by rank.

        Args:
            check: Its name.
            given: Its arguments.
        Raises:
            Failed: with what went wrong in each of the processes.
        """
        if not self._workers:
            self._start()
        for end in self._ends:
            end.send((check, given))
        found: dict[int, Any] = {}
        last, failed = time.monotonic() + SECONDS, ""
        while len(found) < WORLD and not failed:
            ready = wait([end for rank, end in enumerate(self._ends) if rank not in found], last - time.monotonic())
            if not ready:
                failed = f"{check}: no answer within {SECONDS:.0f} seconds"
            for rank in [rank for rank, end in enumerate(self._ends) if end in ready]:
                try:
                    problem, found[rank] = self._ends[rank].recv()
                except EOFError:
                    problem = "the process has ended"
                failed += f"{check}, process {rank}: {problem}\n" if problem else ""
        if failed:
            self.close()
            raise Failed(failed)
        return [found[rank] for rank in range(WORLD)]

    def _start(self) -> None:
        """Let a server that has imported everything fork the processes."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._folder = tempfile.TemporaryDirectory()
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        try:
            for rank in range(WORLD):
                own, other = context.Pipe()
                worker = context.Process(target=_work, args=(rank, f"{self._folder.name}/store", other), daemon=True)
                worker.start()
                other.close()
                self._workers.append(worker)
                self._ends.append(own)
        finally:
            del os.environ["PYTHONPATH"]
            os.environ |= {} if before is None else {"PYTHONPATH": before}

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
        for end in self._ends:
            end.close()
        if self._workers:
            self._folder.cleanup()
        self._workers, self._ends = [], []


def _work(rank: int, store: str, end: Connection) -> None:
    """Run the checks that are asked for, until nobody asks any more."""
    import torch
    import torch.distributed as dist

    warnings.simplefilter("error")
    for message, module in IGNORED:
        warnings.filterwarnings("ignore", message, module=module)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}  # asked for, and not used
    backend = "nccl" if torch.cuda.device_count() >= WORLD else "gloo"
    dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=WORLD)
    while True:
        try:
            check, given = end.recv()
        except EOFError:
            break
        random.seed(0)
        torch.manual_seed(0)
        try:
            end.send(("", getattr(importlib.import_module("tests.distributed.checks"), check)(rank, **given)))
        except BaseException:
            end.send((traceback.format_exc(), None))
            break
