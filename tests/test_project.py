"""Does the repository keep its rules: import direction, dependencies, public names, no local paths?"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator
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

# Folders and single files, of each package: whoever stands further down may import what stands above, never the other
# way round, wherever in a file the import is, and also if it is for types alone.
ORDER: dict[str, tuple[str, ...]] = {
    "adapters": (
        *("_version", "errors", "_conflict", "_sentences", "call", "sharding"),
        *("sites", "methods", "composition", "runtime", "merging", "heads", "checkpoint", "export", "hub"),
        *("verbs", "model", "inspection", "auto", "training", "compat", "__init__"),
    ),
    # The server stands apart: it reads files, not models.
    "adapterhub": (
        *("errors", "settings", "signing", "data", "methods", "names", "db", "claims", "accounts"),
        *("content", "storage", "upstream"),
        *("hub", "http", "quotas", "ingest", "attempts", "rights"),
        *("repos", "facts", "checks", "index", "changes", "interest", "collections"),
        *("xet", "ops", "legacy", "web", "protocol", "api"),
        *("app", "serve", "cli", "__main__", "__init__"),
    ),
}

# Imports inside a function that close a cycle of files, each with the reason why there is no better place.
ALLOWED: dict[tuple[str, str], str] = {}

LONGEST = 300
LARGE: dict[str, str] = {}
"""Classes of more lines than `LONGEST`, each with the reason."""


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


@cache
def tree_of(name: str) -> ast.Module:
    """The source of a module, parsed."""
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


@cache
def imports_of(name: str) -> tuple[Import, ...]:
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

    return tuple(walk(tree_of(name), lazy=False))


def folder(module: str) -> str:
    """The folder of a package in which a module lies, or its own name if it lies in none."""
    return module.partition(".")[2].partition(".")[0] or "__init__"


def rank(module: str) -> int:
    """Place of a module in ORDER: 0 is the top, which imports nothing of ours."""
    order = ORDER[module.partition(".")[0]]
    assert folder(module) in order, f"{module} has no place in ORDER (tests/test_project.py): give its folder one"
    return order.index(folder(module))


def ours(name: str) -> list[Import]:
    """What a module imports of the two packages."""
    return [edge for edge in imports_of(name) if edge.target in modules() and edge.target != name]


@pytest.mark.parametrize("name", modules())
def test_imports_point_up(name: str) -> None:
    wrong = [
        f"{modules()[name].relative_to(ROOT)}:{edge.line} imports {edge.target}, which is below it"
        for edge in ours(name)
        if edge.target.partition(".")[0] == name.partition(".")[0] and rank(edge.target) > rank(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_of_the_order_is_there() -> None:
    there = {package: {folder(name) for name in modules() if name.split(".")[0] == package} for package in ORDER}
    assert {package: set(order) for package, order in ORDER.items()} == there


def test_no_import_cycles() -> None:
    """Of files, by all imports; but files of one folder may name each other's classes in annotations."""
    graph = {
        name: {
            edge.target
            for edge in ours(name)
            if (name, edge.target) not in ALLOWED and not (edge.typing and folder(edge.target) == folder(name))
        }
        for name in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


def test_allowed_imports_are_needed() -> None:
    for (importer, target), reason in ALLOWED.items():
        assert reason
        assert [edge.lazy for edge in ours(importer) if edge.target == target], f"{importer} does not import {target}"


def test_imports_that_run_late_or_never_are_seen() -> None:
    late = {(edge.importer, edge.target) for name in modules() for edge in ours(name) if edge.lazy and not edge.typing}
    typed = {(edge.importer, edge.target) for name in modules() for edge in ours(name) if edge.typing}
    assert ("adapterhub.cli", "adapterhub.accounts") in late
    assert ("adapterhub.index.store", "adapterhub.repos.commits") in typed


def mentions(package: str, words: Collection[str], but: Collection[str] = ()) -> list[str]:
    """Lines below a folder that have one of these words, in code, comments or texts."""
    pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, sorted(words, key=len, reverse=True))) + r")(?!\w)")
    return [
        f"{path.relative_to(SRC)}:{number}: {line.strip()}"
        for path in sorted((SRC / package).rglob("*.py"))
        if path.name not in but
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def method_names() -> set[str]:
    """What methods are called: their classes, their configs, and the names that users write."""
    from adapters.methods import METHODS
    from adapters.methods.presets import ADAPTER_CONFIG_MAP

    written = {name for name in ADAPTER_CONFIG_MAP if name != "parallel"}  # a word of its own, too
    return written | {name for method in METHODS for name in (method.__name__, method.config_class.__name__)}


def test_runtime_names_no_method() -> None:
    from adapters.methods import METHODS

    files = {method.__module__ for method in METHODS}
    # Engine still asks where fusions can be: only behind bottlenecks.
    known = ("engine.py",)
    assert not mentions("adapters/runtime", method_names(), known)
    imports = [edge for name in modules() if name.startswith("adapters.runtime.") for edge in ours(name)]
    assert not [edge for edge in imports if edge.target in files and f"{edge.importer.split('.')[-1]}.py" not in known]


def test_composition_names_no_model() -> None:
    from adapters.sites.specs import SPECS

    classes = ("BERT", "Bert", "RoBERTa", "DistilBERT", "BART", "Bart", "T5", "GPT", "GPT2", "LLaMA", "Llama", "ViT")
    assert not mentions("adapters/composition", {*SPECS, *classes})


def test_sites_name_no_method_and_no_file() -> None:
    from adapters.checkpoint.layout import ADAPTER, FUSION, HEAD, INTERFACE_FILE, SETUP_FILE

    files = {name for kind in (ADAPTER, FUSION, HEAD) for name in (kind.config, *kind.weights)}
    endings = {"safetensors", "json", "bin"}
    known = ("cache.py",)  # a file of its own, which is no adapter's
    assert not mentions("adapters/sites", method_names() | files | endings | {INTERFACE_FILE, SETUP_FILE}, known)


def test_words_are_found_where_they_stand() -> None:
    assert len(mentions("adapters/methods", method_names())) > len(method_names())
    assert mentions("adapters/checkpoint", {"adapter_config.json"})
    assert mentions("adapters/sites", {"bert"}) and not mentions("adapters/sites", {"ber"})


def test_classes_are_short_enough_to_read() -> None:
    long = {
        f"{name}.{node.name}"
        for name in modules()
        for node in ast.walk(tree_of(name))
        if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno + 1 > LONGEST
    }
    assert long <= set(LARGE), f"more than {LONGEST} lines: {sorted(long - set(LARGE))}"


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


def test_config_classes_are_public() -> None:
    import adapters
    from adapters.methods.presets import ADAPTER_CONFIG_MAP

    classes = {type(config).__name__ for config in ADAPTER_CONFIG_MAP.values()}
    assert classes <= set(adapters.__all__)


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
