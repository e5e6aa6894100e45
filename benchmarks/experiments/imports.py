"""How long does an import take? CPU time of new processes, less that of Python itself, over that of `import torch`."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.results import Result, Run

MODEL = "from transformers import BertModel"
OURS = {
    "import adapters": "import adapters",
    "import adapters and use it": f"{MODEL}; import adapters; adapters.init",
}
PEFT = {
    "import adapters": "import peft",
    "import adapters and use it": f"{MODEL}; import peft; peft.get_peft_model",
}


def ours(run: Run) -> Iterator[Result]:
    yield from _measure(run, "ours", OURS)
    yield from _measure(run, "by hand", {"import adapters and use it": MODEL})


def peft(run: Run) -> Iterator[Result]:
    yield from _measure(run, "PEFT", PEFT)


def _measure(run: Run, library: str, statements: dict[str, str]) -> Iterator[Result]:
    rounds = 1 if run.quick else 5
    times: dict[str, list[float]] = {name: [] for name in (*statements, "torch", "python")}
    for _ in range(rounds):
        for name in times:
            times[name].append(_seconds(statements.get(name, "import torch" if name == "torch" else "pass")))
    python, torch = min(times["python"]), min(times["torch"])
    for name in statements:
        seconds = min(times[name]) - python
        facts = {"ms": 1000 * seconds, "ms of torch": 1000 * (torch - python), "rounds": rounds}
        yield Result(f"{name} / import torch", [seconds / (torch - python)], library, facts=facts)


def _seconds(statement: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
