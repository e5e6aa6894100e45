"""Is a file that does not fit refused, with every reason, and the model left as it was?"""

from __future__ import annotations

import json
import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters import errors
from adapters.checkpoint import layout
from adapters.checkpoint.layout import ADAPTER
from adapters.errors import CheckpointError, CheckpointNotFound
from tests.contract.cases import carrying, every_pair
from tests.tiny import build, hooks, perturb

KEY = "encoder.layer.0.attention.self.query.loras.a.lora_A"


def snapshot(model: Any) -> Any:
    """All that loading could change in a model."""
    modules = [(name, type(module)) for name, module in model.named_modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return modules, hooks(model), state, model.adapters_config.to_dict(), torch.random.get_rng_state()


def unchanged(model: Any, before: Any) -> bool:
    modules, traces, state, config, random = snapshot(model)
    same = all(torch.equal(state[key], value) for key, value in before[2].items())
    return (modules, traces, config) == (before[0], before[1], before[3]) and same and torch.equal(random, before[4])


def save(folder: Path, method: str = "lora", name: str = "bert") -> dict[str, Tensor]:
    model = carrying(name, method)
    perturb(model, "a")
    model.save_adapter(folder, "a")
    return load_file(folder / ADAPTER.safetensors)


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / ADAPTER.safetensors)


def refused(folder: Path, name: str = "bert", error: type[Exception] = CheckpointError, **kwargs: Any) -> str:
    """The message with which a fresh model and one that has the adapter refuse a file, without changing."""
    fresh, model = build(name), carrying(name, "seq_bn", names=("z",))
    model.set_active_adapters("z")
    message = ""
    for target in (fresh, model):
        before = snapshot(target)
        with pytest.raises(error) as caught:
            target.load_adapter(folder, **kwargs)
        assert unchanged(target, before)
        message = str(caught.value)
    return message


@every_pair(names=("bert", "t5"))
def test_a_missing_tensor(method: str, name: str, tmp_path: Path) -> None:
    tensors = save(tmp_path, method, name)
    one_of_each = {key.partition(".a.")[2]: key for key in tensors}
    model = build(name)
    before = snapshot(model)
    for key in one_of_each.values():
        write(tmp_path, {k: t for k, t in tensors.items() if k != key})
        with pytest.raises(CheckpointError) as caught:
            model.load_adapter(tmp_path)
        assert f"missing: {key} {tuple(tensors[key].shape)}" in str(caught.value)
    assert unchanged(model, before)


def test_everything_that_is_wrong_is_listed(tmp_path: Path) -> None:
    tensors = save(tmp_path)
    other = KEY.replace("query", "value")
    tensors["encoder.layer.5.attention.self.query.loras.a.lora_A"] = tensors.pop(KEY)
    tensors[other] = tensors[other][:, :-1].contiguous()
    write(tmp_path, tensors)
    message = refused(tmp_path)
    assert f"missing: {KEY} (4, 32)" in message
    assert "unexpected: encoder.layer.5.attention.self.query.loras.a.lora_A (4, 32)" in message
    assert f"does not fit: {other} is (4, 31) in the file and (4, 32) in the model" in message
    assert "saved from BertModel of type 'bert', hidden size 32" in message


def test_an_adapter_that_is_there_keeps_its_weights(tmp_path: Path) -> None:
    tensors = save(tmp_path)
    tensors.pop(KEY)
    write(tmp_path, tensors)
    model = carrying("bert", "lora")
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="missing"):
        model.load_adapter(tmp_path)
    assert unchanged(model, before)


def test_not_strict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = save(tmp_path)
    changed = {**tensors, "encoder.layer.9.loras.a.x": torch.ones(1)}
    changed.pop(KEY)
    write(tmp_path, changed)
    model, info = build("bert"), dict[str, Any]()
    with caplog.at_level(logging.WARNING):
        model.load_adapter(tmp_path, strict=False, loading_info=info)
    assert info == {"missing_keys": [KEY], "unexpected_keys": ["encoder.layer.9.loras.a.x"]}
    assert KEY in caplog.text and "layer.9" in caplog.text
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in tensors.items() if key != KEY)
    assert loaded[KEY].abs().max() > 0
    changed[KEY] = torch.ones(2, 2)
    write(tmp_path, changed)
    with pytest.raises(CheckpointError, match=r"is \(2, 2\) in the file"):
        build("bert").load_adapter(tmp_path, strict=False)


def test_loading_info_of_a_complete_file(tmp_path: Path) -> None:
    save(tmp_path)
    info: dict[str, Any] = {}
    build("bert").load_adapter(tmp_path, loading_info=info)
    assert info == {"missing_keys": [], "unexpected_keys": []}


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "vit", "distilbert"])
def test_another_kind_of_model(name: str, tmp_path: Path) -> None:
    save(tmp_path, "seq_bn")
    message = refused(tmp_path, name)
    assert "missing" in message and "unexpected" in message and "of type 'bert'" in message


def test_another_width(tmp_path: Path) -> None:
    model = build("bert", hidden_size=16)
    model.add_adapter("a", config="seq_bn[reduction_factor=4]")
    model.save_adapter(tmp_path, "a")
    message = refused(tmp_path)
    assert "is (4, 16) in the file and (8, 32) in the model" in message
    assert "hidden size 16; this is BertModel of type 'bert', hidden size 32" in message


def test_another_depth(tmp_path: Path) -> None:
    model = build("bert", num_hidden_layers=3)
    model.add_adapter("a", config="seq_bn")
    model.save_adapter(tmp_path, "a")
    assert "unexpected: encoder.layer.2.output.adapters.a.adapter_down.0.weight" in refused(tmp_path)


def test_integers_are_no_weights(tmp_path: Path) -> None:
    tensors = save(tmp_path)
    tensors[KEY] = torch.ones(4, 32, dtype=torch.int64)
    write(tmp_path, tensors)
    assert "holds torch.int64" in refused(tmp_path)


# Damaged files


def damage(change: Callable[[bytes], bytes], path: Path) -> None:
    path.write_bytes(change(path.read_bytes()))


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "start": lambda data: data[:4],
    "half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "noise": lambda data: bytes(range(256)) * 8,
    "text": lambda data: b"<!doctype html><title>Not found</title>",
    "long header": lambda data: b"\xff" * 8 + data[8:],
    "bad header": lambda data: data[:8] + b"x" * (len(data) - 8),
}


@pytest.mark.parametrize("use_safetensors", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_damaged_weights(change: str, use_safetensors: bool, tmp_path: Path) -> None:
    carrying("bert", "lora").save_adapter(tmp_path, "a", use_safetensors=use_safetensors)
    path = tmp_path / (ADAPTER.safetensors if use_safetensors else ADAPTER.pickle)
    damage(CHANGES[change], path)
    assert str(path) in refused(tmp_path)


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["pickle", "torch", "disguised"])
def test_code_in_a_file_is_not_run(form: str, tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / ADAPTER.safetensors).unlink()
    trace = tmp_path / "trace"
    content: Any = {KEY: Malicious(trace)}
    path = tmp_path / (ADAPTER.safetensors if form == "disguised" else ADAPTER.pickle)
    if form == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    refused(tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(1), {"a": {"b": torch.ones(1)}}, {1: torch.ones(1)}])
def test_other_content(content: Any, tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / ADAPTER.safetensors).unlink()
    torch.save(content, tmp_path / ADAPTER.pickle)
    assert "holds" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"lora"', "null", '{"config": {"r": 4', "\x00", "[" * 100000])
def test_damaged_config(text: str, tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / ADAPTER.config).write_text(text)
    assert ADAPTER.config in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"config": None}, "config"),
        ({"config": 3}, "config"),
        ({"config": {"architecture": "sparta"}}, "sparta"),
        ({"config": {"architecture": "lora", "r": 0}}, "r is 0"),
        ({"config": "sparta"}, "sparta"),
        ({"name": None}, "name"),
        ({"name": ["a"]}, "name"),
        ({"name": "a.b"}, "cannot name"),
    ],
)
def test_unsuitable_config(change: dict[str, Any], part: str, tmp_path: Path) -> None:
    save(tmp_path)
    data = json.loads((tmp_path / ADAPTER.config).read_text())
    (tmp_path / ADAPTER.config).write_text(json.dumps({**data, **change}))
    assert part in refused(tmp_path, error=errors.AdapterError)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / ADAPTER.config).write_bytes(b"\xff\xfe\xfa")
    assert ADAPTER.config in refused(tmp_path)


# Nothing there


def test_nothing_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path, "org/none", "a b/c", "", "/", "a/b/c"):
        assert refused(path, error=CheckpointNotFound)  # type: ignore[arg-type]
    assert issubclass(CheckpointNotFound, OSError)
    assert "go online" in refused("org/none", error=CheckpointNotFound)  # type: ignore[arg-type]


@pytest.mark.parametrize("left", ADAPTER.weights + (ADAPTER.config,))
def test_a_part_is_there(left: str, tmp_path: Path) -> None:
    model = carrying("bert", "lora")
    model.save_adapter(tmp_path / "whole", "a", use_safetensors=left != ADAPTER.pickle)
    tmp_path.joinpath("part").mkdir()
    (tmp_path / "whole" / left).rename(tmp_path / "part" / left)
    message = refused(tmp_path / "part", error=CheckpointNotFound)
    assert left in message and ADAPTER.config in message


def test_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.hub.locate.ADAPTER_CACHE", str(tmp_path / "cache"))
    model = carrying("bert", "lora")
    model.save_adapter(tmp_path / "a", "a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in (tmp_path / "a").iterdir():
            archive.write(path, f"deep/er/{path.name}")
        archive.writestr("../../evil.json", "{}")
        archive.writestr(f"../../{ADAPTER.pickle}.txt", "")
    fresh = build("bert")
    assert fresh.load_adapter(tmp_path / "a.zip") == "a"
    assert fresh.load_adapter(tmp_path / "a.zip", load_as="b") == "b"
    assert not list(tmp_path.parent.rglob("evil.json"))
    (tmp_path / "no.zip").write_text("nothing")
    with pytest.raises(CheckpointError, match="neither"):
        fresh.load_adapter(tmp_path / "no.zip")


# Saving


def test_saving_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no adapter 'b'"):
        carrying("bert", "lora").save_adapter(tmp_path / "x", "b")
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        carrying("bert", "lora").save_adapter(tmp_path / "file", "a")


@pytest.mark.parametrize("use_safetensors", [True, False])
def test_a_crash_leaves_the_old_files(use_safetensors: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = carrying("bert", "lora")
    model.save_adapter(tmp_path, "a", use_safetensors=use_safetensors)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    perturb(model, "a")

    def crash(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    writer = "adapters.checkpoint.tensors.save_file" if use_safetensors else "torch.save"
    for target in (writer, "adapters.checkpoint.tensors.write_json", "os.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(target, crash)
            with pytest.raises(OSError, match="disk full"):
                model.save_adapter(tmp_path, "a", use_safetensors=use_safetensors)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_crash_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    monkeypatch.setattr("adapters.checkpoint.adapters.converted", lambda *args: 1 / 0)
    refused(tmp_path, error=ZeroDivisionError)


def test_versions() -> None:
    assert layout.version_numbers("1.10.0.dev3") == (1, 10, 0)
    assert layout.version_numbers("x") == ()
