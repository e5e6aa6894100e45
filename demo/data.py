"""Which texts does the demo classify? Docstrings of the installed standard library, in a fixed split.

The source files are parsed with `ast`; no module is imported. All steps are deterministic for one Python:

1. Every module, class and function docstring of the modules in `AREAS` is read; the label is the area.
2. Doctests and underlines are dropped, white space is collapsed. The module's own name is removed where
   it is an attribute access: `asyncio.run` becomes `run`. As a word of a sentence ("an email message") it
   stays: one text in ten has it, and without it many would make no sense.
3. Texts under `MIN_WORDS` words go. Equal texts (letters and digits compared) are kept once; where two
   areas share a text nobody can tell them apart, so all its copies go.
4. A module-level object (a class with its methods, a function) falls into one half as a whole, by the
   SHA-256 of its dotted name: about one in `TEST_SHARE` is a test object.
5. Training texts that share more than half of their word triples with one test text go: near-copies, such
   as a base class and its override, would otherwise give the answer away.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MIN_WORDS = 5
MAX_CHARACTERS = 600
TEST_SHARE = 4  # one object in four is a test object
MIN_PER_AREA = 40  # an area with fewer texts (a Python built without tkinter, say) is left out
NEAR_COPY = 0.5

AREAS: dict[str, tuple[str, ...]] = {
    area: tuple(modules.split())
    for area, modules in {
        "networking": """
            cgi cgitb ftplib http ipaddress nntplib socket socketserver ssl telnetlib urllib uuid
            webbrowser wsgiref xmlrpc
        """,
        "mail": "email imaplib mailbox mailcap mimetypes poplib quopri smtpd smtplib",
        "text": """
            _markupbase codecs difflib encodings gettext html locale pprint re reprlib shlex sre_compile
            sre_constants sre_parse string stringprep textwrap
        """,
        "testing and debugging": """
            bdb cProfile doctest logging pdb profile profiling pstats timeit trace traceback tracemalloc
            unittest warnings
        """,
        "concurrency": """
            _threading_local asynchat asyncio asyncore concurrent contextvars multiprocessing queue
            sched selectors signal subprocess threading
        """,
        "data formats": """
            _compression aifc base64 binhex bz2 chunk compression configparser copyreg csv dbm gzip
            imghdr json lzma pickle pickletools plistlib shelve sndhdr sqlite3 sunau tarfile tomllib uu
            wave xdrlib xml zipfile
        """,
        "numbers and dates": """
            _pydatetime _pydecimal _pylong _strptime calendar colorsys datetime decimal fractions
            numbers random secrets statistics zoneinfo
        """,
        "files and system": """
            _aix_support _osx_support _pyio _sitebuiltins argparse cmd crypt ctypes filecmp fileinput
            fnmatch genericpath getopt getpass glob io linecache netrc ntpath nturl2path optparse os
            pathlib pipes platform posixpath pty shutil site stat sysconfig tempfile tty
        """,
        "language tools": """
            _ast_unparse _pyrepl annotationlib ast code codeop compileall dis distutils ensurepip imp
            importlib inspect keyword lib2to3 modulefinder opcode pkgutil py_compile pyclbr pydoc
            rlcompleter runpy symtable tabnanny tokenize venv zipapp zipimport
        """,
        "types and structures": """
            _collections_abc _py_abc _weakrefset abc bisect collections contextlib copy dataclasses enum
            functools graphlib heapq operator types typing weakref
        """,
        "user interfaces": "curses idlelib tkinter turtle turtledemo",
    }.items()
}
"""Area -> the top-level modules and packages that belong to it, of Python 3.10 to 3.14."""

AREA_OF: dict[str, str] = {module: area for area, modules in AREAS.items() for module in modules}
SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages", "_vendor"})


@dataclass(frozen=True)
class Example:
    """One docstring.

    Args:
        text: The cleaned docstring.
        area: Its label, a key of `AREAS`.
        origin: Dotted name of its module-level object, such as `tkinter.Text`, or of the module.
    """

    text: str
    area: str
    origin: str

    @property
    def key(self) -> str:
        """The text as it is compared with others: letters and digits in lower case."""
        return normalise(self.text)


@dataclass(frozen=True)
class Dataset:
    """Both halves of the data set.

    Args:
        train: Examples to learn from.
        test: Examples to be judged by.
        labels: The areas, sorted; the index is the class number.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...]


def load(root: Path | None = None) -> Dataset:
    """Read the data set from the installed Python.

    Args:
        root: Folder of the standard library; None means that of the running interpreter.
    Returns:
        Both halves, in the order of a hash of the text.
    Raises:
        FileNotFoundError: The folder has too few Python sources, as where only compiled files are shipped.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    examples = without_copies(read(root))
    sizes = Counter(example.area for example in examples)
    labels = tuple(sorted(area for area in AREAS if sizes[area] >= MIN_PER_AREA))
    if len(labels) < 2:
        raise FileNotFoundError(
            f"{root} has docstrings of {len(labels)} areas; the demo needs the sources (*.py) of the "
            "standard library. Run it with a Python that has them, such as one from python.org or Debian."
        )
    examples = sorted((e for e in examples if e.area in labels), key=lambda e: digest(e.key))
    test = tuple(example for example in examples if in_test_half(example.origin))
    train = without_near_copies((example for example in examples if not in_test_half(example.origin)), test)
    return Dataset(train, test, labels)


def balanced(examples: Iterable[Example], per_area: int) -> list[Example]:
    """The first `per_area` examples of each area: as the order is that of a hash, a fixed random subset."""
    taken: Counter[str] = Counter()
    subset = []
    for example in examples:
        if taken[example.area] < per_area:
            taken[example.area] += 1
            subset.append(example)
    return subset


def read(root: Path) -> Iterator[Example]:
    """All docstrings below `root` that have an area, in the order of the file names."""
    tops = [top for top in root.iterdir() if top.stem in AREA_OF and (top.is_dir() or top.suffix == ".py")]
    paths = [path for top in tops for path in (top.rglob("*.py") if top.is_dir() else [top])]
    for path in sorted(paths):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS.intersection(parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # lib2to3 ships files that are wrong on purpose
            continue
        module = ".".join(part for part in parts if part != "__init__")
        yield from docstrings(tree, module, AREA_OF[parts[0]])


def docstrings(tree: ast.Module, module: str, area: str) -> Iterator[Example]:
    """The cleaned docstrings of one module, its classes and its functions."""
    owned: list[tuple[str, Iterable[ast.AST]]] = [(module, [tree])]
    for statement in tree.body:
        origin = module
        if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            origin = f"{module}.{statement.name}"
        owned.append((origin, ast.walk(statement)))
    for origin, nodes in owned:
        for node in nodes:
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = clean(ast.get_docstring(node) or "", module)
                if len(normalise(text).split()) >= MIN_WORDS:
                    yield Example(text, area, origin)


def clean(docstring: str, module: str) -> str:
    """Prose of a docstring: no doctests, no underlines, single spaces, no `module.` before a name."""
    lines = []
    in_doctest = False
    for line in docstring.splitlines():
        stripped = line.strip()
        # a doctest's output ends at a blank line
        in_doctest = stripped.startswith(">>>") or (in_doctest and stripped != "")
        if not in_doctest and not re.fullmatch(r"[-=~^*#+_]{3,}", stripped):
            lines.append(stripped)
    text = " ".join(" ".join(lines).split())
    text = re.sub(rf"\b{re.escape(module.partition('.')[0])}\.(?=\w)", "", text)
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS].rpartition(" ")[0]


def normalise(text: str) -> str:
    """Letters and digits in lower case, one space between words."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def without_copies(examples: Iterable[Example]) -> list[Example]:
    """One example per normalised text; none where two areas share the text."""
    groups: defaultdict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.key].append(example)
    return [group[0] for group in groups.values() if len({example.area for example in group}) == 1]


def without_near_copies(train: Iterable[Example], test: Sequence[Example]) -> tuple[Example, ...]:
    """Those training examples that share at most `NEAR_COPY` of their word triples with each test example."""
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, example in enumerate(test):
        for triple in triples(example):
            holders[triple].append(index)
    kept = []
    for example in train:
        own = triples(example)
        shared = Counter(index for triple in own for index in holders[triple])
        if max(shared.values(), default=0) <= NEAR_COPY * len(own):
            kept.append(example)
    return tuple(kept)


def triples(example: Example) -> set[tuple[str, ...]]:
    """The distinct runs of three words of an example."""
    words = example.key.split()
    return set(zip(words, words[1:], words[2:], strict=False))


def in_test_half(origin: str) -> bool:
    """True for about one in `TEST_SHARE` module-level objects, the same ones on every machine."""
    return digest(origin) % TEST_SHARE == 0


def digest(text: str) -> int:
    """A number that looks random but is the same everywhere, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
