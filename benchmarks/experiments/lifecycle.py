"""How long do adding, loading, activating and deleting one adapter take while N others are there?

CPU milliseconds for N up to 100, in a model with BERT-base's layers and width. "By hand" is to read the file and to
copy its tensors into tensors that are there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from benchmarks.measuring import milliseconds
from benchmarks.models import WIDE_12
from benchmarks.results import Result, Run

PROBE = "probe"


class Side(Protocol):
    """A library's verbs on one model."""

    def add(self, name: str) -> None: ...
    def delete(self, name: str) -> None: ...
    def activate(self, name: str) -> None: ...
    def load(self) -> None: ...


class Ours:
    def __init__(self, method: str, folder: str) -> None:
        import adapters
        from benchmarks.ours import config

        self.model, self.config, self.folder = adapters.init(WIDE_12.model()), config(method), folder
        self.add(PROBE)
        self.model.save_adapter(folder, PROBE)
        self.delete(PROBE)

    def add(self, name: str) -> None:
        self.model.add_adapter(name, config=self.config)

    def delete(self, name: str) -> None:
        self.model.delete_adapter(name)

    def activate(self, name: str) -> None:
        self.model.set_active_adapters(name)

    def load(self) -> None:
        self.model.load_adapter(self.folder, load_as=PROBE)


class Peft:
    def __init__(self, folder: str) -> None:
        from benchmarks import peer

        self.peer = peer
        self.model = peer.adapted(WIDE_12.model(), "lora", WIDE_12, ("first",))
        self.model.save_pretrained(folder)
        self.folder = str(Path(folder) / "first")

    def add(self, name: str) -> None:
        self.model.add_adapter(name, self.peer.config("lora", WIDE_12))

    def delete(self, name: str) -> None:
        self.model.delete_adapter(name)

    def activate(self, name: str) -> None:
        self.model.set_adapter(name)

    def load(self) -> None:
        self.model.load_adapter(self.folder, adapter_name=PROBE)


def ours(run: Run) -> Iterator[Result]:
    for method in ("lora", "seq_bn"):
        with tempfile.TemporaryDirectory() as folder:
            side = Ours(method, folder)
            yield from _measure(run, "ours", method, side, [])
            yield from _by_hand(run, method, folder)


def peft(run: Run) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        yield from _measure(run, "PEFT", "lora", Peft(folder), ["first"])


def _measure(run: Run, library: str, method: str, side: Side, names: list[str]) -> Iterator[Result]:
    repeats = 3 if run.quick else 7
    for count in (1, 100) if run.quick else (1, 10, 100):
        while len(names) < count:
            names.append(f"a{len(names)}")
            side.add(names[-1])
        there = f"{count} present"
        times: dict[str, list[float]] = {"add": [], "load": [], "delete": []}
        for _ in range(repeats):
            times["add"] += milliseconds(lambda: side.add(PROBE))
            times["delete"] += milliseconds(lambda: side.delete(PROBE))
            times["load"] += milliseconds(side.load)
            side.delete(PROBE)
        some = names[:: max(1, count // 10)]
        for again in ("first time", "again"):
            activations = [partial(side.activate, name) for name in some]
            times[f"activate ({again})"] = [milliseconds(activate)[0] for activate in activations]
        for what, values in times.items():
            yield Result(f"{what} one {method}, {there}", values, library, "ms", WIDE_12.describe())


def _by_hand(run: Run, method: str, folder: str) -> Iterator[Result]:
    file = Path(folder) / "adapter.safetensors"
    there: dict[str, Any] = {name: torch.empty_like(tensor) for name, tensor in load_file(file).items()}

    def load() -> None:
        for name, tensor in load_file(file).items():
            there[name].copy_(tensor)

    load()
    yield Result(f"load one {method}, 100 present", milliseconds(load, repeats=5), "by hand", "ms", WIDE_12.describe())
