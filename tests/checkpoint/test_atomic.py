"""Does a folder hold the old or the new state as a whole, whenever a save is interrupted?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import adapters
from adapters.checkpoint import atomic
from adapters.checkpoint.atomic import SAVED, UNFINISHED, reading, saving
from adapters.checkpoint.layout import ADAPTER, EMBEDDING_FILE, HEAD, SETUP_FILE, TOKENIZER_FOLDER
from adapters.errors import CheckpointError
from tests.checkpoint.killing import KINDS
from tests.heads.models import add_head, tiny
from tests.tiny import build

ROOT = Path(__file__).parents[2]


def killed(kind: str, kills: int, seed: int = 0) -> str:
    """Run the program that is killed while it saves."""
    command = [sys.executable, "-m", "tests.checkpoint.killing", kind, str(kills), str(seed)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", KINDS)
def test_killed_before_every_operation_on_files(kind: str) -> None:
    assert int(killed(kind, 0).split()[0]) > 8


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_random(kind: str) -> None:
    assert killed(kind, 12) == "11 kills\n"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write(folder: Path, *files: str) -> None:
    with saving(folder) as new:
        for file in files:
            (new / file).parent.mkdir(exist_ok=True)
            (new / file).write_text(file)


class Interrupted(BaseException):
    """Stands for whatever ends a call."""


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, at: int, *files: str) -> None:
    """Save, but fail at call number `at` of a function."""
    calls, real = 0, getattr(os, function)

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise Interrupted
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, failing)
        with pytest.raises(Interrupted):
            write(folder, *files)


def test_before_the_commit_the_old_state_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x", "one", "sub/two")
    interrupted(tmp_path / "x", monkeypatch, "rename", 1, "one", "three")
    assert names(tmp_path / "x") == ["one", "sub/two"]
    interrupted(tmp_path / "new", monkeypatch, "rename", 1, "one")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_after_the_commit_the_new_state_comes(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "one")
    interrupted(tmp_path, monkeypatch, "replace", at, "one", "two", "sub/three")
    assert (tmp_path / SAVED).is_dir() or (tmp_path / "sub" / SAVED).is_dir()
    with reading(tmp_path):
        assert names(tmp_path) == ["one", "sub/three", "two"]


def test_a_part_that_waits_for_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, monkeypatch, "replace", 1, "sub/one", "sub/two", "three")
    with reading(tmp_path / "sub"):
        assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["one", "two"]
    with reading(tmp_path):
        assert names(tmp_path) == ["sub/one", "sub/two", "three"]


def test_what_others_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / f"{UNFINISHED}dead" / "x").mkdir(parents=True)
    (tmp_path / "mine.txt").write_text("")
    write(tmp_path, "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "one"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "a")
    with pytest.raises(CheckpointError, match="is a file"):
        write(tmp_path, "a/b", "c")
    write(tmp_path, "d/e")
    with pytest.raises(CheckpointError, match="is a folder"):
        write(tmp_path, "d")
    assert names(tmp_path) == ["a", "d/e"]


def test_a_save_that_cannot_be_finished_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, monkeypatch, "replace", 1, "one")

    def refused(*args: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(CheckpointError, match=r"interrupted.*writable"), reading(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs flock")
def test_readers_and_savers_wait_for_each_other(tmp_path: Path) -> None:
    write(tmp_path, "one")
    saved = threading.Event()

    def save() -> None:
        write(tmp_path, "one", "two")
        saved.set()

    with reading(tmp_path), reading(tmp_path):
        thread = threading.Thread(target=save)
        thread.start()
        assert not saved.wait(0.2)
        assert names(tmp_path) == ["one"]
    thread.join()
    assert names(tmp_path) == ["one", "two"]


def test_without_flock_it_works_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic.sys, "platform", "win32")
    write(tmp_path, "one", "sub/two")
    with reading(tmp_path):
        assert names(tmp_path) == ["one", "sub/two"]


# What belongs to a state


def test_an_old_head_goes(tmp_path: Path) -> None:
    model = tiny("bert")
    model.add_adapter("a", config="lora")
    add_head(model, "classification", "a")
    model.save_adapter(tmp_path, "a", use_safetensors=False)
    (tmp_path / "README.md").write_text("mine")
    model.delete_head("a")
    model.save_adapter(tmp_path, "a")
    assert names(tmp_path) == sorted(["README.md", ADAPTER.config, ADAPTER.safetensors])
    fresh = tiny("bert")
    fresh.load_adapter(tmp_path)
    assert not fresh.heads


def test_the_head_of_another_checkpoint_stays(tmp_path: Path) -> None:
    model = tiny("bert")
    for name in "ab":
        model.add_adapter(name, config="seq_bn")
    model.add_adapter_fusion(["a", "b"])
    add_head(model, "classification", "a")
    model.save_adapter(tmp_path, "a")
    model.save_adapter_fusion(tmp_path, "a,b")
    assert (tmp_path / HEAD.config).is_file()


def test_half_a_head_is_an_error(tmp_path: Path) -> None:
    model = tiny("bert")
    model.add_adapter("a", config="lora")
    add_head(model, "classification", "a")
    for part in (HEAD.config, HEAD.safetensors):
        model.save_adapter(tmp_path, "a")
        (tmp_path / part).unlink()
        fresh = tiny("bert")
        with pytest.raises(CheckpointError, match=f"half.*{part}"):
            fresh.load_adapter(tmp_path)
        assert not fresh.adapters_config.adapters
        fresh.load_adapter(tmp_path, with_head=False)


def test_files_of_two_states_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for folder, alpha in (("one", 8), ("two", 4)):
        model = build("bert")
        model.add_adapter("a", config=f"lora[alpha={alpha}]")
        model.save_adapter(tmp_path / folder, "a")
    build("bert").load_adapter(tmp_path / "one")
    assert "not saved together" not in caplog.text
    (tmp_path / "two" / ADAPTER.safetensors).replace(tmp_path / "one" / ADAPTER.safetensors)
    build("bert").load_adapter(tmp_path / "one")
    assert "not saved together" in caplog.text
    caplog.clear()
    tensors = load_file(tmp_path / "one" / ADAPTER.safetensors)
    save_file(tensors, tmp_path / "one" / ADAPTER.safetensors)  # what people make by hand has no note of its origin
    assert build("bert").load_adapter(tmp_path / "one") == "a"
    assert "not saved together" not in caplog.text


def test_what_is_saved_twice_is_equal(tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config="lora")
    for name in ("one", "two"):
        model.save_adapter(tmp_path / name, "a")
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


class Tokenizer:
    """Writes the files it is told to."""

    def __init__(self, *files: str) -> None:
        self.files = files

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        for file in self.files:
            (folder / file).write_text(json.dumps(file))


def test_an_old_tokenizer_goes(tmp_path: Path) -> None:
    model = build("bert")
    model.save_embeddings(tmp_path, "default", Tokenizer("old.json", "both.json"))
    model.save_embeddings(tmp_path, "default", Tokenizer("both.json", "new.json"))
    both = [f"{TOKENIZER_FOLDER}/both.json", f"{TOKENIZER_FOLDER}/new.json"]
    assert names(tmp_path) == [EMBEDDING_FILE, *both]
    model.save_embeddings(tmp_path, "default")
    assert names(tmp_path) == [EMBEDDING_FILE]


def test_old_shards_and_an_old_interface_go(tmp_path: Path) -> None:
    model = build("bert")
    model.add_adapter("a", config="lora")
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(names(tmp_path)) > 3
    (tmp_path / "adapter_interface.json").write_text("{}")
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    assert list(adapters.load_model(tmp_path, type(model)).adapters_config) == ["a"]


def test_a_setup_that_fails_leaves_nothing_new(tmp_path: Path) -> None:
    class Loader:
        def save(self, folder: str, name: str) -> None:
            Path(folder, "more").write_text(name)
            if name == "b":
                raise OSError("disk full")

    model = build("bert")
    for name in "ab":
        model.add_adapter(name, config="seq_bn")
    model.save_adapter_setup(tmp_path, adapters.Stack("a", "b"))
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    with pytest.raises(OSError, match="disk full"):
        model.save_adapter_setup(tmp_path, adapters.Stack("b", "a"), custom_weights_loaders=[Loader()])
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    model.save_adapter(tmp_path / "a", "a", custom_weights_loaders=[Loader()])
    assert (tmp_path / "a" / "more").read_text() == "a" and (tmp_path / SETUP_FILE).is_file()
