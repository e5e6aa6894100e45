"""Runs commands of `hf`, each as its program would: run as a program with a JSON list of lists of words."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from typing import Any

from huggingface_hub.cli.hf import main as hf


def main(commands: list[list[str]]) -> None:
    """Prints the exit status and the output of each."""
    print(json.dumps([run(command) for command in commands]))


def run(command: list[str]) -> dict[str, Any]:
    """One command."""
    status, output = 0, io.StringIO()
    sys.argv = ["hf", *command]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            hf()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return {"command": command, "status": status, "output": output.getvalue()}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
