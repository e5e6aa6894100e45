"""Is a second owner of the import name `adapters` refused, and nothing else?"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapters._conflict import refuse_foreign_distribution
from adapters.errors import EnvironmentConflict

SRC = Path(__file__).parents[1] / "src"


def install(site: Path, metadata: str, name: str = "adapters", **files: str) -> None:
    """Write the metadata folder of a distribution as an installer would."""
    folder = site / metadata
    folder.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.3.0\n"
    (folder / ("PKG-INFO" if metadata.endswith(".egg-info") else "METADATA")).write_text(text)
    for file, content in files.items():
        (folder / file.replace("_txt", ".txt")).write_text(content)


RECORD = "adapters/__init__.py,,\nadapters-1.3.0.dist-info/RECORD,,\n"


@pytest.mark.parametrize(
    ("metadata", "files"),
    [
        ("adapters-1.3.0.dist-info", {"RECORD": RECORD}),
        ("adapters-1.3.0.dist-info", {"RECORD": "__editable__.pth,,\n", "top_level_txt": "adapters\n"}),
        ("adapters.egg-info", {"top_level_txt": "adapters\n"}),
    ],
    ids=["wheel", "editable", "egg"],
)
def test_owner_of_our_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: str, files: dict[str, str]
) -> None:
    install(tmp_path, metadata, **files)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentConflict, match=r"'adapters' 1\.3\.0.*pip uninstall adapters"):
        refuse_foreign_distribution()


@pytest.mark.parametrize(
    ("metadata", "name", "files"),
    [
        ("adapters-1.3.0.dist-info", "adapters", {"RECORD": "elsewhere/__init__.py,,\n"}),
        ("adapters_extra-1.0.dist-info", "adapters-extra", {"RECORD": "adapters/extra.py,,\n"}),
        ("adapterhub-0.1.0.dist-info", "adapterhub", {"RECORD": "adapters/__init__.py,,\n"}),
    ],
    ids=["other package", "other name", "ours"],
)
def test_others_are_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metadata: str, name: str, files: dict[str, str]
) -> None:
    install(tmp_path, metadata, name, **files)
    monkeypatch.syspath_prepend(tmp_path)
    refuse_foreign_distribution()


def test_import_fails_with_the_instruction(tmp_path: Path) -> None:
    install(tmp_path, "adapters-1.3.0.dist-info", RECORD=RECORD)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SRC), str(tmp_path)])}
    done = subprocess.run(
        [sys.executable, "-c", "import adapters"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "adapters.errors" in done.stderr
    assert "pip uninstall adapters" in done.stderr


def test_check_is_cheap() -> None:
    def once() -> float:
        started = time.perf_counter()
        refuse_foreign_distribution()
        return time.perf_counter() - started

    assert min(once() for _ in range(20)) < 1e-3
