"""Which adapters work on which model types of transformers? Tries all of them, in small, and writes down what happens.

    python scripts/zoo.py [TYPE ...] [--jobs 1] [--seconds 120] [--page]

Each type is tried in a process of its own (`tests/zoo.py` says how): the roles that are found and at how many layers,
those that are refused and why, and what each method did at all of them in every check. docs/capabilities.json has it
type by type, as soon as it is known, and docs/capabilities.md is made of that. Types that are there already are tried
again only when they are named; `--page` tries none. With another version of transformers everything is tried again.
"""

from __future__ import annotations

import argparse
import html
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

DATA, PAGE = ROOT / "docs" / "capabilities.json", ROOT / "docs" / "capabilities.md"
COMMAND = "python scripts/zoo.py"
MEMORY = 6 << 30
"""Bytes that a process may take to try one type."""
Record = dict[str, Any]


def tried(model_type: str) -> Record:
    """The record of one type: `none` with the reason why it could not be tried, or what was found."""
    from tests.zoo import inputs_of, probe, small_model

    try:
        model = small_model(model_type)
    except Exception as error:
        return {"none": f"no small model can be built: {_in_short(error)}"}
    try:
        inputs = inputs_of(model)
    except RuntimeError as error:
        return {"none": f"no forward pass succeeds: {_in_short(error)}"}
    try:
        return probe(model, inputs, model_type).record()
    except Exception as error:
        return {"none": f"init fails: {_in_short(error)}"}


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def sweep(types: Iterable[str], jobs: int, seconds: int) -> Iterator[tuple[str, Record]]:
    """The records of types as they come, each tried in a process of its own, where it disturbs nothing.

    Args:
        types: They.
        jobs: How many are tried at a time.
        seconds: What each may take, of one processor.
    """
    context = multiprocessing.get_context("fork")
    todo = list(reversed(list(types)))
    running: dict[int, tuple[Any, str, Path]] = {}
    with tempfile.TemporaryDirectory() as folder:
        while todo or running:
            while todo and len(running) < jobs:
                name = todo.pop()
                path = Path(folder) / f"{name}.json"
                process = context.Process(target=_alone, args=(name, path, seconds))
                process.start()
                running[process.sentinel] = process, name, path
            for ended in connection.wait(list(running), timeout=60 * seconds):
                process, name, path = running.pop(cast(int, ended))
                process.join()
                if path.exists():
                    yield name, json.loads(path.read_text(encoding="utf-8"))
                elif process.exitcode == -signal.SIGXCPU:
                    yield name, {"none": f"it takes more than {seconds} s"}
                else:
                    yield name, {"none": f"its process dies: {process.exitcode}"}


def _alone(model_type: str, path: Path, seconds: int) -> None:
    """What a process of its own does."""
    import torch
    import transformers

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))  # some types cannot be made small
    with tempfile.TemporaryDirectory() as specs:
        os.environ["ADAPTERS_SPEC_CACHE"] = specs  # the language model of a type has the places of its base model
        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        warnings.filterwarnings("ignore")
        record = tried(model_type)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(record), encoding="utf-8")
    new.replace(path)


# ---------------------------------------------------------------------------------------------------------- the files


def versions() -> dict[str, str]:
    """Of what the results depend on."""
    import torch
    import transformers

    return {"transformers": transformers.__version__, "torch": torch.__version__.partition("+")[0]}


def read() -> tuple[dict[str, Record], dict[str, str]]:
    """Type -> record, and the versions with which they were made; nothing of other versions of transformers."""
    if not DATA.exists():
        return {}, versions()
    made = json.loads(DATA.read_text(encoding="utf-8"))
    records = made.pop("types")
    return (records, made) if made["transformers"] == versions()["transformers"] else ({}, versions())


def write(records: Mapping[str, Record], made: Mapping[str, str]) -> None:
    """Write the JSON: a line for each type, and one for each of its methods."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in made.items()]
    types = []
    for name in sorted(records):
        methods = records[name].get("methods", {})
        rest = json.dumps({key: value for key, value in records[name].items() if key != "methods"}, ensure_ascii=False)
        rows = ",\n".join(f"   {json.dumps(m)}: {json.dumps(methods[m], ensure_ascii=False)}" for m in methods)
        whole = f'{rest[:-1]}, "methods": {{\n{rows}}}}}' if methods else rest
        types.append(f"  {json.dumps(name)}: {whole}")
    text = "{\n" + ",\n".join([*lines, ' "types": {\n' + ",\n".join(types) + "\n }"]) + "\n}\n"
    new = DATA.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(DATA)


# ----------------------------------------------------------------------------------------------------------- the page

MARKS = {"verified": "✓", "refused": "–", "failed": "✗", "cannot be told": "?"}
APART = ("Stack", "Average", "Parallel", "generates")
"""Checks with a column of their own; the column of a method is about the others."""

TEXT = """# Capabilities

Which adapters work in which model types of Transformers: not what should work, but what was tried. `{command}` builds
a small random model of every type that `AutoModel` knows, puts every method at every role that `adapters.init` finds
there, and writes this page and [capabilities.json](capabilities.json). Tests try a sample anew and compare. Made with
{versions}; {tried} of {all} types tried.

| | types | of |
|---|---:|---:|
{counts}

A method is verified (✓) at a type if all of this holds at every role that was found:

{checks}

It is refused (–) where the model has no such place, or where the library says why not; it failed (✗) where numbers
are wrong; it cannot be told (?) where the model itself, without adapters, gives something else for one row than for
several, or with a cache than without. What has a column of its own is not counted for the method: ✓ there says that
it holds for every method that acts, a number for how many, and – that it is refused. Nothing stands under "generates"
where a type has no language model. `a` are methods at linear maps without a role, by their paths. Fuse, Split,
MultiTask and Route are tried by the contract tests on fewer types; what they can do on a model,
`adapters.inspect(model)` tells. At the end of a line are roles that are refused; the reasons are below the table.

| type | {methods} | {apart} | refused roles |
|---|{rules}---|
{rows}

## Why

{reasons}
"""


def page(records: Mapping[str, Record], made: Mapping[str, str]) -> str:
    """The page about these records, which were made with these versions."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    from tests.zoo import CHECKS, METHODS

    run = {name: record for name, record in records.items() if "methods" in record}
    return TEXT.format(
        command=COMMAND,
        versions=" and ".join(f"{name} {value}" for name, value in made.items()),
        tried=len(records),
        all=len(MODEL_MAPPING_NAMES),
        counts="\n".join(f"| {words} | {count} | {of} |" for words, count, of in counts(run)),
        checks="\n".join(f"- {check}: {words}" for check, words in CHECKS.items()),
        methods=" | ".join(f"`{method}`" for method in METHODS),
        apart=" | ".join(APART),
        rules="---|" * (len(METHODS) + len(APART)),
        rows="\n".join(_line(name, run[name]) for name in sorted(run)),
        reasons="\n".join(_reasons(records)),
    )


def counts(run: Mapping[str, Record]) -> Iterator[tuple[str, int, int]]:
    """What is counted, for how many types it holds, and of how many."""
    from tests.zoo import METHODS

    def whole(record: Record, *checks: str) -> bool:
        return all(_mark(record, method, *checks) == MARKS["verified"] for method in METHODS)

    attention = {name: record for name, record in run.items() if _attends(record)}
    complete = [record for record in attention.values() if whole(record)]
    yield "with attention: every method verified (the goal is 400 of 421)", len(complete), len(attention)
    full = [record for record in complete if not _refused(record)]
    yield "... and no role of their layers refused", len(full), len(complete)
    parallel = [record for record in attention.values() if whole(record, "Parallel")]
    yield "with attention: Parallel verified with every method (the goal is 395)", len(parallel), len(attention)
    speak = [record for record in run.values() if _block(record, "generates")]
    same = [record for record in speak if _block(record, "generates") == MARKS["verified"]]
    yield "with a language model: every method that acts generates with a cache as without", len(same), len(speak)
    others = [record for name, record in run.items() if name not in attention]
    linear = [r for r in others if all(_mark(r, method) == MARKS["verified"] for method in ("lora", "dora", "ia3"))]
    yield "without attention: methods of linear maps verified", len(linear), len(others)
    failing = [record for record in run.values() if any(_failures(record))]
    yield "with a check that failed", len(failing), len(run)


def _attends(record: Record) -> bool:
    return any(role.startswith(("attn", "cross")) for role in (*record["roles"], *record["refused"]))


def _refused(record: Record) -> list[str]:
    """The roles of layers that are refused."""
    return [role for role in record["refused"] if not role.startswith("embed")]


def _failures(record: Record) -> Iterator[str]:
    return (c for results in record["methods"].values() for c, r in results.items() if str(r).startswith("failed"))


def _mark(record: Record, method: str, *apart: str) -> str:
    """How a method did in the checks that have no column of their own, or in these of those that have one."""
    results = record["methods"].get(method, {})
    worst = [results[c].partition(":")[0] for c in results if c != "verified" and (c in apart or c not in APART)]
    if apart and not worst and not set(apart) <= set(results.get("verified", ())):
        return ""
    return next(
        (MARKS[state] for state in ("failed", "refused", "cannot be told") if state in worst), MARKS["verified"]
    )


def _block(record: Record, check: str) -> str:
    """How a check with a column of its own did with the methods that act."""
    results = [r for r in record["methods"].values() if "acts" in r["verified"]]
    states = ["verified" if check in r["verified"] else r.get(check, "").partition(":")[0] for r in results]
    states = [state for state in states if state]
    if not states:
        return ""
    count = states.count("verified")
    if "failed" in states:
        return f"{MARKS['failed']} {states.count('failed')}"
    return MARKS[states[0]] if len(set(states)) == 1 else str(count)


def _line(name: str, record: Record) -> str:
    methods = [_mark(record, method) for method in record["methods"]]
    if not any("." in role for role in record["roles"]) and methods[0] == MARKS["verified"]:
        methods = ["a" if mark == MARKS["verified"] else mark for mark in methods]
    cells = [f"`{name}`", *methods, *(_block(record, check) for check in APART)]
    return f"| {' | '.join(cells)} | {', '.join(_refused(record))} |"


def _reasons(records: Mapping[str, Record]) -> Iterator[str]:
    """Every reason once, folded, with the types that it is about."""
    roles, results, none = (defaultdict[str, list[str]](list) for _ in range(3))
    for name in sorted(records):
        record = records[name]
        for role, why in record.get("refused", {}).items():
            roles[f"{role}: {_general(why)}"].append(name)
        for method, own in record.get("methods", {}).items():
            for check, result in own.items():
                if check != "verified":
                    results[f"{method}, {check} {_general(result)}"].append(name)
        if "none" in record:
            none[_general(record["none"])].append(name)
    for title, found in (("Failed, refused or not told", results), ("Roles", roles), ("Not tried", none)):
        yield f"### {title}\n"
        for why, names in sorted(found.items(), key=lambda item: ("failed" not in item[0], -len(item[1]), item[0])):
            types = ", ".join(f"`{name}`" for name in names)
            yield f"<details><summary>{html.escape(why)} ({len(names)})</summary>\n\n{types}\n\n</details>"
        yield ""


def _general(why: str) -> str:
    """A reason without what is special about one model: paths, numbers, and what to do instead."""
    text = re.sub(r"Adapter 'a': |Fusion 'a,b': | in this model of type '[^']*'|\(?\b[\w*]+(\.[\w*]+)+\)?", "", why)
    text = re.sub(r"\b\d[\d.e+-]*", "n", text.partition(". ")[0])
    return " ".join(re.sub(r"\[[n, ]+\]", "[n]", text).split())


def main() -> None:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("types", nargs="*", help="model types; by default all that have not been tried")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=int, default=120, help="that one type may take of a processor")
    parser.add_argument("--page", action="store_true", help="write the page anew, and try nothing")
    arguments = parser.parse_args()
    import tests.zoo  # noqa: F401  # once, before the processes start

    records, made = read()
    todo = [] if arguments.page else arguments.types or [name for name in MODEL_MAPPING_NAMES if name not in records]
    for name, record in sweep(todo, arguments.jobs, arguments.seconds):
        records[name] = record
        write(records, made)
        print(f"{len(records):4} {name:34} {record.get('none') or ' '.join(record['roles'])}", flush=True)
    PAGE.write_text(page(records, made), encoding="utf-8")


if __name__ == "__main__":
    main()
