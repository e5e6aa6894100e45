"""The command line: what it prints, what it leaves behind, and how it says that something is wrong."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from adapterhub import cli, serve
from adapterhub.settings import GiB, MiB, Settings, unshared


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command on a hub of the test's own; returns exit status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADAPTERHUB_DATA", str(tmp_path / "data"))

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            status = cli.main(list(map(str, arguments)))
        except SystemExit as end:
            status = end.code
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return call


def test_a_day_in_the_life_of_an_administrator(call, tmp_path):
    assert call("user", "add", "alice", "--admin", "--password-stdin", stdin="long enough\n")[0] == 0
    assert call("user", "add", "bob", "--no-password", "--fullname", "Bob B.")[0] == 0
    assert call("org", "add", "acme", "alice")[:2] == (0, "acme is an organisation, managed by alice.\n")
    assert call("org", "member", "acme", "bob", "write")[0] == 0
    assert call("org", "member", "acme", "alice", "none")[2] == (
        "adapterhub: An organisation needs an admin. Make another member admin first.\n"
    )
    status, token, _ = call("token", "new", "bob", "laptop", "--role", "read", "--scope", "acme", "--days", "7")
    assert (status, token[:4]) == (0, "ahb_")
    listing = call("token", "list", "bob")[1]
    assert listing.splitlines()[0].split() == ["id", "name", "begins", "role", "for", "used", "ends"]
    assert token[:8] in listing
    assert token.strip() not in listing
    assert call("token", "revoke", "bob", listing.splitlines()[1].split()[0])[0] == 0
    assert len(call("token", "list", "bob")[1].splitlines()) == 1
    assert call("user", "disable", "bob")[0] == 0
    rows = call("user", "list")[1].splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["alice", "bob"]
    assert rows[1].endswith("admin")
    assert rows[2].endswith("disabled")
    assert call("user", "disable", "bob", "--undo")[1] == "bob is let in again.\n"
    assert call("user", "password", "bob", "--password-stdin", stdin="another long one\n")[0] == 0
    assert call("fsck", "--deep")[:2] == (0, "All is well.\n")
    assert "0 blobs" in call("gc", "--grace", "0")[1]
    assert call("reindex")[:2] == (0, "0 repositories indexed\n")
    assert call("backup", tmp_path / "copy")[0] == 0
    assert call("restore", tmp_path / "copy", "--data", tmp_path / "second")[0] == 0
    restored = call("user", "list", "--data", tmp_path / "second")[1].splitlines()
    assert [row.split()[0] for row in restored[1:]] == ["alice", "bob"]
    assert "revision" in call("migrate")[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("user", "add", "api", "--no-password"), "'api' is reserved"),
        (("user", "add", "x y", "--no-password"), "cannot be a name"),
        (("user", "add", "carol"), "--password-stdin"),
        (("user", "add", "carol", "--password-stdin"), "8 to 1024 characters"),
        (("user", "password", "nobody", "--password-stdin"), "no user named 'nobody'"),
        (("token", "list", "nobody"), "no user named 'nobody'"),
        (("restore", "nowhere"), "no complete copy"),
        (("check", "nowhere"), "nowhere is no folder"),
        (("fsck", "--db", "nonsense"), "the database cannot be used"),
        (("fsck", "--blobs", "ftp://x"), "blobs='ftp://x' is no store"),
    ],
)
def test_mistakes_are_told_in_one_line(call, arguments, said):
    status, _, errors = call(*arguments, stdin="" if "carol" in arguments else "long enough\n")
    assert status == 1
    assert said in errors
    assert errors.startswith("adapterhub: ")
    assert len(errors.splitlines()) == 1


def test_a_database_that_does_not_answer_is_told_in_one_line(call):
    status, _, errors = call("user", "list", "--db", "postgresql+asyncpg://nobody@127.0.0.1:9/none")
    assert status == 1
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("arguments", [(), ("user",), ("token",), ("org",)])
def test_without_a_command_the_help_is_shown(call, arguments):
    status, output, _ = call(*arguments)
    assert status == 2
    assert "commands:" in output


def test_every_setting_is_an_option_with_its_own_text(call):
    status, output, _ = call("serve", "--help")
    assert status == 0
    for field in cli._setting_names():
        assert f"--{field.replace('_', '-')}" in output
    assert set(cli._setting_texts()) == set(cli._setting_names())


def adapter_folder(path):
    path.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "bert-base-uncased", "r": 8, "target_modules": ["query"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    weights = {f"{layer}.lora_A.weight": np.ones((8, 768), "f4"), f"{layer}.lora_B.weight": np.ones((768, 8), "f4")}
    save_file(weights, path / "adapter_model.safetensors")
    card = "---\nlicense: mit\nbase_model: bert-base-uncased\nlibrary_name: peft\n---\n# A title\n\nWords.\n"
    (path / "README.md").write_text(card)
    return path


def test_check_says_what_an_upload_would_meet(call, tmp_path):
    folder = adapter_folder(tmp_path / "adapter")
    status, output, _ = call("check", folder)
    assert status == 0, output
    assert "0 errors" in output
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.")
    status, output, _ = call("check", folder)
    assert status == 1
    assert "ERROR" in output
    assert "adapter_model.bin" in output


# ---- settings -------------------------------------------------------------------------------------------------------


def test_options_win_over_the_environment_and_that_over_the_defaults():
    environment = {
        "ADAPTERHUB_QUOTA": "2GiB",
        "ADAPTERHUB_OPEN_SIGNUP": "yes",
        "ADAPTERHUB_LIMITS": "api=5/60,login=1/10",
        "ADAPTERHUB_NAME": "Ours",
        "ADAPTERHUB_DATA": "/srv/hub",
    }
    settings = serve.read_settings({"name": "Mine", "quota": None}, environment)
    assert settings == Settings(
        quota=2 * GiB, open_signup=True, limits={"api": (5, 60), "login": (1, 10)}, name="Mine", data=Path("/srv/hub")
    )


def test_settings_survive_the_way_to_a_worker():
    settings = Settings(limits={"api": (5, 60)}, open_signup=True, multipart_bytes=7 * MiB, blobs="s3://b/p")
    names = cli._setting_names()
    environment = {serve.PREFIX + name.upper(): serve.text_of(getattr(settings, name)) for name in names}
    assert serve.read_settings({}, environment) == settings
    off = Settings(limits={})
    environment["ADAPTERHUB_LIMITS"] = serve.text_of(off.limits)
    assert serve.read_settings({}, environment).limits == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [("quota", "much"), ("workers", "-1"), ("open_signup", "perhaps"), ("limits", "api=5"), ("limits", "api=5/0")],
)
def test_values_that_are_none_are_refused(name, text, call):
    with pytest.raises(ValueError, match=name):
        serve.parse(name, text)
    if name not in ("open_signup",):
        status, _, errors = call("serve", f"--{name.replace('_', '-')}", text)
        assert status == 2
        assert text in errors


def shared(folder):
    """What others than the hub's own user can get to below a folder."""
    paths = [folder, *folder.rglob("*")]
    return [path for path in paths if path.lstat().st_mode & 0o077]


@pytest.fixture
def open_mask():
    mask = os.umask(0o022)
    yield
    os.umask(mask)


@pytest.mark.usefixtures("open_mask")
def test_nobody_else_reads_what_a_hub_keeps(call, tmp_path):
    assert call("user", "add", "alice", "--admin", "--no-password")[0] == 0
    assert call("backup", "copy")[0] == call("backup", "rows", "--tables")[0] == 0
    assert call("restore", "copy", "--data", "again")[0] == 0
    for name in ("data", "copy", "rows", "again"):
        assert (tmp_path / name).exists()
        assert shared(tmp_path / name) == []
    (tmp_path / "mine").touch()
    assert (tmp_path / "mine").stat().st_mode & 0o777 == 0o644  # it is as before when the command has ended


@pytest.mark.usefixtures("open_mask")
def test_what_an_older_version_left_open_is_shut(call, tmp_path):
    for name in ("data", "bytes"):
        (tmp_path / name).mkdir(mode=0o755)
    assert call("user", "list", "--blobs", str(tmp_path / "bytes"))[0] == 0
    for name in ("data", "bytes"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    settings = Settings(data=tmp_path / "data", accel_prefix="/inside")
    assert unshared(settings) == 0o027  # nginx reads the bytes, as one of the hub's group


# ---- the server -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_serve_starts_says_where_it_is_and_stops_when_told(tmp_path, workers, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "adapterhub", "serve", "--data", str(tmp_path), "--port", str(port)]
    with subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 60
            while True:
                try:
                    ready = httpx.get(f"{url}/readyz", trust_env=False, timeout=30)
                    break
                except httpx.TransportError:
                    assert server.poll() is None
                    assert time.monotonic() < until
                    time.sleep(0.05)
            assert ready.json() == {"ready": True, "database": "ok", "blobs": "ok"}
            assert httpx.get(f"{url}/metrics", trust_env=False, timeout=30).status_code == 401
            monkeypatch.setenv("ADAPTERHUB_DATA", str(tmp_path))
            cli.main(["user", "add", "alice", "--admin", "--no-password"])
            capsys.readouterr()
            cli.main(["token", "new", "alice", "prometheus", "--role", "read"])
            bearer = {"Authorization": f"Bearer {capsys.readouterr().out.strip()}"}
            figures = httpx.get(f"{url}/metrics", headers=bearer, trust_env=False, timeout=30).text
            assert "adapterhub_repositories 0.0" in figures
            assert "adapterhub_request_seconds_bucket" in figures
        finally:
            server.send_signal(signal.SIGTERM)
            output = server.stdout.read()
            server.wait(30)
    assert f"is at {url}" in output
    assert f"{url}/setup/" in output
    assert f"export HF_ENDPOINT={url}" in output
    assert "--load-checks" in output


def test_an_address_in_use_is_told_in_one_line(call):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, _, errors = call("serve", "--port", taken.getsockname()[1])
    assert status == 1
    assert "Choose another --host or --port" in errors
    assert len(errors.splitlines()) == 1


def test_help_loads_nothing_heavy():
    script = (
        "import sys, adapterhub.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: print('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split("LOADED")[1].split())
    assert not loaded & {"fastapi", "sqlalchemy", "alembic", "obstore", "uvicorn", "torch", "transformers", "adapters"}
