"""Are adapters found in repositories, archives and behind URLs, and is nothing written where it should not be?"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from adapters.checkpoint.layout import ADAPTER, HEAD
from adapters.errors import CheckpointError, CheckpointNotFound
from adapters.hub import locate
from tests.contract.cases import carrying
from tests.tiny import build


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter's folder; archives are unpacked below `tmp_path` too."""
    monkeypatch.setattr(locate, "ADAPTER_CACHE", str(tmp_path / "cache"))
    carrying("bert", "lora").save_adapter(tmp_path / "saved", "a")
    return tmp_path / "saved"


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Address under which the files of `tmp_path` are served on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"some/where/{file.name}")
        for evil in ("../../evil.json", "/evil.json", "evil.py", f"x/{ADAPTER.config}/"):
            archive.writestr(evil, "")
    return path


def tarred(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for file in folder.iterdir():
            archive.add(file, file.name)
        link = tarfile.TarInfo(HEAD.config)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        evil = tarfile.TarInfo("../../evil.json")
        archive.addfile(evil, io.BytesIO())
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives(pack: Any, saved: Path, tmp_path: Path, address: str) -> None:
    archive = pack(saved, tmp_path / "archive")
    for source in (archive, f"{address}/archive"):
        model = build("bert")
        for name in ("one", "two"):
            model.load_adapter(source, load_as=name)
    unpacked = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert unpacked == sorted([ADAPTER.config, ADAPTER.safetensors] * 2)
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name or path.is_symlink()]


def test_a_url_is_downloaded_once(saved: Path, tmp_path: Path, address: str) -> None:
    archive = zipped(saved, tmp_path / "a.zip")
    model = build("bert")
    model.load_adapter(f"{address}/a.zip", load_as="one")
    archive.write_text("nothing")
    model.load_adapter(f"{address}/a.zip", load_as="two")
    with pytest.raises(CheckpointError, match="neither a folder nor a zip"):
        model.load_adapter(f"{address}/a.zip", load_as="three", force_download=True)
    with pytest.raises(CheckpointNotFound, match="could not be downloaded"):
        model.load_adapter(f"{address}/none.zip")
    assert list(model.adapters_config) == ["one", "two"]


def test_a_repository(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def fetch(name: str, revision: str | None, choose: Any, expected: Any, **kwargs: Any) -> Path:
        calls.append((name, revision, kwargs))
        return saved.parent if name == "org/several" else saved

    monkeypatch.setattr(locate, "fetch", fetch)
    model = build("bert")
    assert model.load_adapter("org/name") == "a"
    assert model.load_adapter("name", load_as="b", version="v1", token="t") == "b"
    assert model.load_adapter("org/several", load_as="c", revision="main", subfolder="saved") == "c"
    assert calls == [("org/name", None, {}), ("name", "v1", {"token": "t"}), ("org/several", "main", {})]
    with pytest.raises(CheckpointNotFound, match=rf"{HEAD.config}.*It holds: {ADAPTER.safetensors}"):
        model.load_head("org/name")


def test_a_repository_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    for error, advice in (
        (RepositoryNotFoundError("404", response=answer), "log in"),
        (GatedRepoError("403", response=answer), "accept its terms"),
        (HfHubHTTPError("teapot", response=answer), "teapot"),
        (OSError("disk full"), "disk full"),
    ):

        def model_info(*args: Any, error: Exception = error, **kwargs: Any) -> Any:
            raise error

        monkeypatch.setattr(HfApi, "model_info", model_info)
        with pytest.raises(CheckpointNotFound, match=advice):
            build("bert").load_adapter("org/name")


def test_unknown_arguments(saved: Path) -> None:
    with pytest.raises(TypeError, match="Did you mean 'token'"):
        build("bert").load_adapter(saved, tokn="x")


def test_arguments_of_the_past(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    build("bert").load_adapter(saved, config="lora", model_name="bert-base-uncased")
    assert "its stored config is" in caplog.text


def test_a_folder_of_peft(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointNotFound, match=r"does not hold adapter_config.json and"):
        locate.locate(tmp_path, ADAPTER)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    assert locate.locate(tmp_path, ADAPTER) == tmp_path
