"""The check that needs torch: an adapter is loaded into a model of random weights, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..settings import MiB
from .finding import Check, listed, quoted

__all__ = ["ID", "load_check"]

ID = "load.random"
_LINK = f"/docs/checks#{ID}"
_NOWHERE = "http://127.0.0.1:9"
_FIX = "Load it yourself with `load_adapter`, and upload what `save_adapter` writes."


async def load_check(folder: Path, *, seconds: float = 120, memory: int = 16_384 * MiB) -> Check:
    """Loads the adapter in a folder into a random model of its config's architecture.

    Args:
        folder: with `adapter_config.json` and weights as safetensors.
        seconds: after which the process is ended.
        memory: bytes of address space that it may have; torch alone takes several GiB.
    """
    with tempfile.TemporaryDirectory(prefix="load-check-") as scratch:
        report = await _report(folder.absolute(), Path(scratch), seconds, memory)
    if report is None:
        message = f"Loading the adapter took more than {seconds:g} seconds or {memory // MiB} MiB, or crashed."
        return Check(ID, "error", message, _FIX, _LINK)
    if skipped := report.get("skipped"):
        return Check(ID, "ok", f"Loading was not tried: {skipped}", "", _LINK)
    if problem := report.get("problem"):
        return Check(ID, "error", f"The adapter cannot be loaded: {problem}", _FIX, _LINK)
    if missing := report.get("missing"):
        message = f"The adapter loads, but without {listed(quoted(name) for name in missing)}."
        return Check(ID, "warning", message, _FIX, _LINK)
    return Check(ID, "ok", "The adapter loads into a model of its architecture.", "", _LINK)


async def _report(folder: Path, scratch: Path, seconds: float, memory: int) -> dict[str, Any] | None:
    """What the worker says; None where it does not."""
    command = (
        sys.executable,
        "-I",
        "-m",
        f"{__package__}.load_worker",
        str(folder),
        str(memory),
        str(int(seconds) + 1),
    )
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=scratch,
        env=_environment(scratch),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds)
        report = json.loads(output.splitlines()[-1])
    except (asyncio.TimeoutError, ValueError, IndexError):
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return report if isinstance(report, dict) else None


def _environment(scratch: Path) -> dict[str, str]:
    """Nothing of ours, and no way out."""
    proxies = dict.fromkeys(
        ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), _NOWHERE
    )
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"), "1")
    folders = dict.fromkeys(("HOME", "TMPDIR", "HF_HOME"), str(scratch))
    quiet = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "LANG": "C.UTF-8", "PATH": os.defpath}
    return {**proxies, **offline, **folders, **quiet}
