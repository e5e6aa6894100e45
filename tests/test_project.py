"""Does the repository keep its rules: import direction, dependencies, public names, no local paths?"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"

# An entry may import entries above it, never below; inside an entry there are no cycles. A module belongs to
# the longest entry that is a prefix of its name. Methods know blocks but not what evaluates them; to import
# the blocks runs `composition/__init__.py`, so that stands as high as they do. Hubs know what files are called, and
# are what `checkpoint` fetches from. What files call the places of a model is data by which the engine names its sites.
ORDER = (
    "adapters.errors",
    "adapters._conflict",
    "adapters._version",
    "adapters.call",
    "adapters.checkpoint.__init__",
    "adapters.checkpoint.places",
    "adapters.sites",
    "adapters.composition.blocks",
    "adapters.composition.__init__",
    "adapters.methods",
    "adapters.composition",
    "adapters.runtime",
    "adapters.heads",
    "adapters.checkpoint.layout",
    "adapters.checkpoint.atomic",
    "adapters.hub",
    "adapters.checkpoint",
    "adapters.verbs",
    "adapters.model",
    "adapters.auto",
    "adapters.training",
    "adapters.compat",
    "adapters.cli",
    "adapters.__init__",
    # The server stands apart: it reads files, not models.
    *(f"adapterhub.{name}" for name in ("errors", "settings", "signing", "data", "methods", "names", "db", "claims")),
    *(f"adapterhub.{name}" for name in ("accounts", "content")),
    *(f"adapterhub.storage.{name}" for name in ("__init__", "blobs", "disk", "s3", "stores")),
    *(f"adapterhub.{name}" for name in ("hub", "quotas", "http", "repos.__init__", "repos.git", "storage.ingest")),
    *(f"adapterhub.repos.{name}" for name in ("files", "repos", "refs")),
    *(f"adapterhub.index.{name}" for name in ("__init__", "peft", "configs", "record", "taxonomy", "base_models")),
    "adapterhub.checks",
    *(f"adapterhub.index.{name}" for name in ("derive", "search", "store", "examine")),
    *(f"adapterhub.{name}" for name in ("repos", "ops.__init__", "ops.attempts", "rights", "xet")),
    *(f"adapterhub.{name}" for name in ("index", "api.shared", "ops", "legacy", "web.snippets")),
    *(f"adapterhub.{name}" for name in ("web", "protocol", "api", "app", "serve", "cli", "__main__", "__init__")),
)

# Imports inside a function that point down, each with the reason why there is no better place.
ALLOWED: dict[tuple[str, str], str] = {}


# Modules that are imported only where their extra is there.
OF_AN_EXTRA = ("adapterhub.storage.s3",)


@dataclass(frozen=True)
class Import:
    """One import statement: the module it stands in, what it names, whether it runs later, or never but for types."""

    importer: str
    target: str
    line: int
    lazy: bool
    typing: bool


@cache
def modules() -> dict[str, Path]:
    """Every module of `src`, by dotted name."""
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str) -> Iterator[Import]:
    """All imports in a module, also those in functions, with `from package import module` taken apart."""
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def walk(node: ast.AST, lazy: bool, typing: bool = False) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(name, alias.name, node.lineno, lazy, typing)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(name, inner if inner in modules() else base, node.lineno, lazy, typing)
        else:
            lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing = typing or (isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"))
            for child in ast.iter_child_nodes(node):
                yield from walk(child, lazy or typing, typing)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), lazy=False)


def rank(module: str) -> int:
    """Place of a module in ORDER: 0 is the top, which imports nothing of ours."""
    path = modules().get(module)
    full = f"{module}.__init__" if path and path.name == "__init__.py" else module
    fits = [entry for entry in ORDER if full == entry or full.startswith(entry + ".")]
    assert fits, f"{module} has no place in ORDER (tests/test_project.py): give it one"
    return ORDER.index(max(fits, key=len))


def downward(name: str) -> list[Import]:
    """Imports of a module that point to an entry below its own; in the hub, those for types alone do not count."""
    own = [edge for edge in imports_of(name) if edge.target.split(".")[0] in ("adapters", "adapterhub")]
    return [
        edge for edge in own if rank(edge.target) > rank(name) and not (edge.typing and name.startswith("adapterhub."))
    ]


@pytest.mark.parametrize("name", modules())
def test_imports_point_up(name: str) -> None:
    wrong = [
        f"{modules()[name].relative_to(ROOT)}:{edge.line} imports {edge.target}, which is below it"
        for edge in downward(name)
        if not (edge.lazy and (edge.importer, edge.target) in ALLOWED)
    ]
    assert not wrong, "\n".join(wrong)


def test_allowed_imports_are_needed() -> None:
    used = {(edge.importer, edge.target) for name in modules() for edge in downward(name)}
    assert set(ALLOWED) <= used
    assert all(ALLOWED.values())


def test_no_import_cycles() -> None:
    graph = {
        name: {
            edge.target
            for edge in imports_of(name)
            if not edge.lazy and edge.target in modules() and edge.target != name
        }
        for name in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


def settings() -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project


def test_imported_packages_are_declared() -> None:
    project = settings()
    needed, extras = project["dependencies"], project["optional-dependencies"]
    assert isinstance(needed, list)
    assert isinstance(extras, dict)

    def names(requirements: list[str]) -> set[str]:
        return {re.split(r"[^\w-]", one)[0].replace("-", "_").lower() for one in requirements}

    stdlib = set(sys.stdlib_module_names)
    always = {"adapters": names(needed) | stdlib | {"adapters"}, "adapterhub": names(extras["hub"]) | stdlib}
    always["adapterhub"] |= {"adapterhub", "argon2", "markdown_it"}  # two of the hub's packages are called otherwise
    sometimes = {"adapters"} | names([*needed, *(one for group in extras.values() for one in group)])
    wrong = [
        f"{edge.importer}:{edge.line} imports {edge.target}"
        for name in modules()
        for edge in imports_of(name)
        if edge.target.split(".")[0].lower()
        not in always[name.split(".")[0]] | (sometimes if edge.lazy or name in OF_AN_EXTRA else set())
    ]
    assert not wrong, "not in pyproject.toml, or of an extra but imported outside a function:\n" + "\n".join(wrong)


def test_public_names_exist() -> None:
    import adapters

    assert len(adapters.__all__) == len(set(adapters.__all__))
    missing = [name for name in adapters.__all__ if not hasattr(adapters, name)]
    assert not missing
    assert set(adapters.__all__) <= set(dir(adapters))


def test_version_is_the_distributions() -> None:
    import adapters

    assert adapters.__version__ == settings()["version"]


def test_import_is_lazy() -> None:
    heavy = {"torch", "transformers", "numpy", "huggingface_hub"}
    code = f"import sys, adapters; print(*{heavy} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_installed_metadata_is_typed_and_licensed() -> None:
    assert (SRC / "adapters" / "py.typed").is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    try:
        dist = importlib.metadata.distribution("adapterhub")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("adapterhub is not installed here; the tests run from the source folder")
    assert dist.version == settings()["version"]


def text_files() -> list[Path]:
    """Files of the repository that people write: what git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    files = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [file for file in files if file.is_file() and file.suffix not in {".png", ".safetensors", ".bin"}]


def test_nothing_belongs_to_one_machine() -> None:
    # A folder of somebody's machine at the start of a path, or a package index other than the one pip knows.
    local = re.compile(
        r"(?<![\w.~}\-/])/(?:home|root|work|Users|opt)/\w|--(?:extra-)?index-" + r"url|--find-" + "links"
    )
    wrong = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in text_files()
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if local.search(line) and file != Path(__file__)
    ]
    assert not wrong, "\n".join(wrong)


def test_other_machines_are_out_of_reach() -> None:
    with socket.socket() as sock, pytest.raises(RuntimeError, match="without network"):
        sock.connect(("192.0.2.1", 80))


def test_the_hub_needs_no_models() -> None:
    models = {"torch", "transformers", "adapters", "peft"}
    code = f"import sys, adapterhub.app, adapterhub.cli; print(*{models} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
