"""Do the commands of `hf` work with a hub of one's own?"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.conftest import Program, environment


def test_commands(hub_server: HubServer, program: Program, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "README.md").write_text("---\nlicense: mit\n---\n# Hi\n")
    (tmp_path / "up" / "note.txt").write_text("note")
    steps = [  # command, what it tells
        ("auth whoami", "alice"),
        ("repos create alice/cli", "alice/cli"),
        ("repos create alice/cli --exist-ok", "alice/cli"),
        (f"upload alice/cli {tmp_path / 'up'} .", "alice/cli"),
        (f"upload alice/cli {tmp_path / 'up' / 'note.txt'} more/note.txt --create-pr", "alice/cli"),
        (f"download alice/cli --local-dir {tmp_path / 'down'}", "down"),
        ("download alice/cli note.txt --quiet", "note.txt"),
        ("models ls --author alice --format json", "alice/cli"),
        ("models info alice/cli", "license:mit"),
        ("repos tag create alice/cli v1 -m First", "v1"),
        ("repos tag list alice/cli", "v1"),
        ("repos tag delete alice/cli v1 --yes", "v1"),
        ("repos branch create alice/cli feat/x", "feat/x"),
        ("discussions list alice/cli", "1"),
        ("discussions merge alice/cli 1 --yes", ""),
        ("repos settings alice/cli --private", ""),
        ("repos move alice/cli acme/cli", ""),
        ("repos delete acme/cli --yes", "acme/cli"),
    ]
    commands = [command.split() for command, _ in steps] + [["models", "info", "alice/none"]]
    *told, missing = program("commands.py", hub_server, json.dumps(commands))
    assert missing["status"] == 1 and "not found" in missing["output"].lower()
    for step, (_, words) in zip(told, steps):
        assert step["status"] == 0 and words in step["output"], step
    assert (tmp_path / "down" / "note.txt").read_text() == "note"


def test_the_program_itself(hub_server: HubServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hf")), "auth", "whoami"],
        env=environment(hub_server, tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and "alice" in done.stdout
