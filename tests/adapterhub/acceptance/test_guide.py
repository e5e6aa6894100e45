"""Does the written guide work, word for word, on a machine where nothing else is?"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[3]
GUIDE = (ROOT / "docs" / "hub.md").read_text().split("\n## A hub of your own\n")[1]


def blocks(text: str) -> list[tuple[str, str]]:
    """Languages and texts of the code blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_guide_installs_what_is_here() -> None:
    language, text = blocks(GUIDE)[0]
    assert (language, text) == ("bash", 'pip install "adapterhub[hub]"\nadapterhub serve\n')
    project = (ROOT / "pyproject.toml").read_text()
    assert 'name = "adapterhub"' in project and re.search(r"^hub = \[", project, re.MULTILINE)


@pytest.mark.slow
def test_from_nothing_to_an_adapter_loaded_back(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # All is as written but the port, which must be free, and the interpreter, which is this one.
    script = ["set -eux"]
    for language, text in blocks(GUIDE.replace("8090", str(port)))[1:]:
        script.append(text if language == "bash" else f"python -W error::SyntaxWarning - <<'END'\n{text}END")
    inherited = {name: v for name, v in os.environ.items() if not name.startswith(("HF_", "HUGGING", "ADAPTERHUB_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
    given = {**inherited, "PATH": path, "HF_HOME": str(tmp_path / "home")}
    url, log = f"http://127.0.0.1:{port}", tmp_path / "serve.txt"
    began = time.monotonic()
    with (
        open(log, "w") as written,
        subprocess.Popen(["adapterhub", "serve", f"--port={port}"], cwd=tmp_path, env=given, stdout=written) as server,
    ):
        try:
            wait(url)
            done = subprocess.run(
                ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=given, capture_output=True, text=True, timeout=240
            )
            assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
            page = httpx.get(f"{url}/ann/reviews", headers={"Accept": "text/html"}, trust_env=False)
        finally:
            server.terminate()
    assert time.monotonic() - began < 300
    assert '"id":"ann/reviews"' in done.stdout and '"total":1' in done.stdout
    assert "reviews" in done.stdout.splitlines()[-3] + done.stdout.splitlines()[-2]
    assert page.is_success and "ann/reviews" in page.text
    assert url in log.read_text() and "/setup/" in log.read_text()


def wait(url: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError("The hub did not start.")
