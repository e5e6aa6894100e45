"""Programs that use a hub with a client of their own version, with caches of their own and no other hub in sight."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.adapterhub.acceptance.process import HubProcess
from tests.adapterhub.conftest import HubServer

HERE = Path(__file__).parent
CLIENTS = Path(os.environ.get("ADAPTERHUB_CLIENTS", HERE.parents[2] / ".venv-clients"))
# Filled by `make hub-clients`. The newest is not among them: it is the one that is installed with us.
VERSIONS = ("0.25.2", "0.34.4", "0.36.2", "1.0.1", "1.29.0", "2.4.0")
_DIRTY = ("HF_", "HUGGING", "PYTHONPATH", "XET_")

Program = Callable[..., Any]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """Runs a program of this folder with a client, and returns the JSON on the last line that it prints.

    `program("scenario.py", hub_server, version="0.25.2", HF_HUB_DISABLE_XET="1")`
    """

    def run(
        name: str,
        server: HubServer | HubProcess,
        *arguments: object,
        version: str | None = None,
        timeout: int = 300,
        **env: str,
    ) -> Any:
        command = [sys.executable, str(HERE / name), *map(str, arguments)]
        given = environment(server, tmp_path) | env
        if version:
            folder = CLIENTS / version
            if not folder.is_dir():
                pytest.skip(f"huggingface_hub {version} is not in {CLIENTS}: make hub-clients")
            given["PYTHONPATH"] = str(folder)
            command.insert(1, "-S")  # nothing of our own environment
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, (
            f"{name} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
        return json.loads(done.stdout.splitlines()[-1])

    return run


def environment(server: HubServer | HubProcess, folder: Path) -> dict[str, str]:
    """The environment of a program that uses the hub as alice."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_DIRTY)}
    return {
        **inherited,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": server.tokens["alice"],
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "TMPDIR": str(folder),
        "TOKENS": json.dumps(server.tokens),
    }
