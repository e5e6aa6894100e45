"""A program that is killed while it saves: python -m tests.checkpoint.killing KIND KILLS SEED. See test_atomic.py.

It is killed at random moments; with 0 KILLS once before every operation on files. Version v of a model has the value v
in every tensor of ours, and in the JSON files. Odd versions have a head.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.utils import logging

from adapters import AutoAdapterModel, Fuse
from adapters.checkpoint.atomic import SAVED, UNFINISHED
from adapters.checkpoint.folders import load_folders, save_folders
from adapters.checkpoint.layout import ADAPTER, FUSION, HEAD, SETUP_FILE
from tests.heads.models import tiny
from tests.tiny import adapter_parameters


def model_with(*names: str, head: bool) -> Any:
    model = tiny("bert")
    for name in names:
        model.add_adapter(name, config="seq_bn[reduction_factor=8]")
    if len(names) > 1:
        model.add_adapter_fusion(list(names))
    if head:
        model.add_classification_head("a", num_labels=2, layers=1)
    return model


def ours(model: Any) -> Iterator[torch.Tensor]:
    yield from adapter_parameters(model, "a", "b", "a,b").values()
    yield from model.heads.parameters()


@torch.no_grad()
def versions_of(model: Any) -> set[float]:
    return {value for tensor in ours(model) for value in tensor.unique().tolist()}


def noted(path: Path) -> float:
    return float(json.loads(path.read_text())["v"])


def save_adapter(model: Any, folder: Path, v: int) -> None:
    model.save_adapter(folder, "a", {"v": v}, use_safetensors=v % 4 < 2)


def read_adapter(folder: Path) -> set[float]:
    model = tiny("bert")
    model.load_adapter(folder)
    found = versions_of(model) | {noted(folder / ADAPTER.config)}
    assert bool(model.heads) == bool(next(iter(found)) % 2), "a head of another version"
    return found | ({noted(folder / HEAD.config)} if model.heads else set())


def save_fusion(model: Any, folder: Path, v: int) -> None:
    model.save_adapter_fusion(folder, "a,b", {"v": v}, use_safetensors=v % 4 < 2)


def read_fusion(folder: Path) -> set[float]:
    model = tiny("bert")
    for name in "ab":
        model.add_adapter(name, config="seq_bn[reduction_factor=8]")
    model.load_adapter_fusion(folder)
    return {v for t in adapter_parameters(model, "a,b").values() for v in t.unique().tolist()} | {
        noted(folder / FUSION.config)
    }


def save_setup(model: Any, folder: Path, v: int) -> None:
    heads = ["a"] if v % 2 else None
    model.save_adapter_setup(folder, Fuse("a", "b"), heads, {"v": v}, use_safetensors=v % 4 < 2)


def read_setup(folder: Path) -> set[float]:
    model = tiny("bert")
    model.load_adapter_setup(folder)
    return versions_of(model) | {noted(folder / SETUP_FILE)}


def save_all(model: Any, folder: Path, v: int) -> None:
    model.save_all_adapters(folder, {"v": v}, use_safetensors=v % 4 < 2)


def read_all(folder: Path) -> set[float]:
    with_root = tiny("bert")
    for name in "ab":
        with_root.load_adapter(folder, subfolder=name)
    return versions_of(with_root)


def read_trainer(folder: Path) -> set[float]:
    model = model_with("a", "b", head=True)
    load_folders(model, folder)
    return versions_of(model)


def save_full(model: Any, folder: Path, v: int) -> None:
    model.config.v = v
    model.save_pretrained(folder, max_shard_size="30KB" if v % 2 else "1GB")


def read_full(folder: Path) -> set[float]:
    model = AutoAdapterModel.from_pretrained(folder)
    return versions_of(model) | {float(model.config.v)}


class Kind(NamedTuple):
    """What is saved, and how the versions are found that lie in a folder."""

    names: tuple[str, ...]
    heads: bool
    save: Callable[[Any, Path, int], None]
    read: Callable[[Path], set[float]]


KINDS: dict[str, Kind] = {
    "adapter": Kind(("a",), True, save_adapter, read_adapter),
    "fusion": Kind(("a", "b"), False, save_fusion, read_fusion),
    "setup": Kind(("a", "b"), True, save_setup, read_setup),
    "all adapters": Kind(("a", "b"), True, save_all, read_all),
    "trainer": Kind(("a", "b"), True, lambda model, folder, v: save_folders(model, folder), read_trainer),
    "full model": Kind(("a", "b"), True, save_full, read_full),
}


STEPS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "open")
"""Audit events of operations on files."""


def killed_at(step: int, folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that ends the process before operation number `step` that changes something in a folder."""
    passed = count()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in STEPS or not str(args[0]).startswith(str(folder)):
            return
        writes = event != "open" or (args[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and next(passed) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def main(kind: Kind, kills: int, seed: int) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    chance = random.Random(seed)
    plain, headed = (model_with(*kind.names, head=head) for head in (False, True))
    trainer = kind is KINDS["trainer"]

    def save(folder: Path, v: int) -> None:
        model = headed if trainer or (kind.heads and v % 2) else plain
        with torch.no_grad():
            for tensor in ours(model):
                tensor.fill_(v)
        kind.save(model, folder, v)

    with tempfile.TemporaryDirectory() as temporary:
        real, folder = Path(temporary, "real"), Path(temporary, "link")
        real.mkdir()
        folder.symlink_to(real)
        (real / "README.md").write_text("mine")
        started = time.perf_counter()
        save(folder, 2)
        duration, version = time.perf_counter() - started, 3
        for number in range(kills) if kills else count():
            if not (child := os.fork()):
                if not kills:
                    sys.addaudithook(killed_at(number, folder))
                for v in count(version) if kills else (version,):
                    save(folder, v)
                os._exit(0)
            if kills:
                time.sleep(chance.uniform(0, 3 * duration))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            found = kind.read(folder)
            assert len(found) == 1, f"versions {sorted(found)} in one folder"
            version = int(found.pop()) + 1
            if not os.WIFSIGNALED(status):
                assert not kills and status == 0, "the child failed"
                break
        save(folder, version)
        left = [path for path in real.rglob("*") if path.name == SAVED or path.name.startswith(UNFINISHED)]
        assert not left, f"left over: {left}"
        assert (real / "README.md").read_text() == "mine" and folder.is_symlink()
        assert kind.read(folder) == {version}
    print(f"{number} kills")


if __name__ == "__main__":
    main(KINDS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]))
