"""Which types of transformers carry flexible heads, and which plain heads become flexible ones? Tries all in small.

    python scripts/heads.py [--types [TYPE ...]] [--classes [CLASS ...]] [--every N] [--jobs 2]

Of every model type, `AutoAdapterModel` is opened, and each kind of head that it has is added, trained with a LoRA,
saved and opened again. Of every class with a head, a checkpoint is opened by `AutoAdapterModel`, and logits and loss
are compared, or the reason is told for which its head is refused (`tests/heads/everything.py`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ADAPTERS_SPEC_CACHE"] = ""

MISSING = re.compile(r"requires the (\w+) library|module transformers has no attribute")
REFUSED = "cannot be turned into a flexible head: "


def tried(what: str, name: str, folder: Path) -> tuple[str, str]:
    """Outcome and reason."""
    from adapters.errors import UnsupportedError
    from adapters.sites.spec import ModelSpec
    from tests.heads import everything
    from tests.zoo import inputs_of, small_model

    try:
        if what == "type":
            everything.try_type(name, folder)
            return "works", ""
        with patch("adapters.runtime.engine.spec_for", lambda *_: ModelSpec(layers=())):  # adapters are not asked here
            return f"same {everything.try_class(name, folder, again=False)}", ""
    except UnsupportedError as error:
        return "refused", str(error).partition(REFUSED)[2] or str(error)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"[:600]
        if MISSING.search(why):
            return "needs a library", why
        if what == "type":
            try:
                inputs_of(small_model(name))
            except Exception as plain:
                return "does not run without heads either", f"{type(plain).__name__}: {plain}"[:300]
        return "failed", why


def _work(what: str, name: str, path: Path) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    record = tried(what, name, path.parent)
    path.write_text(json.dumps(record), encoding="utf-8")


def in_process(what: str, name: str, seconds: float) -> tuple[str, str]:
    """What became of one type or class, tried where nothing else is disturbed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "record"
        process = multiprocessing.get_context("fork").Process(target=_work, args=(what, name, path))
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return "failed", f"more than {seconds:.0f} s"
        if not path.exists():
            return "failed", f"exit code {process.exitcode}"
        outcome, why = json.loads(path.read_text(encoding="utf-8"))
        return outcome, why


def classes() -> list[str]:
    """All classes of transformers that have a head, by their names."""
    import transformers
    from transformers.models.auto import modeling_auto

    named = {
        name
        for key, types in vars(modeling_auto).items()
        if key.startswith("MODEL_FOR_") and key.endswith("_MAPPING_NAMES")
        for names in types.values()
        for name in ((names,) if isinstance(names, str) else names)
    }
    more = {name for name in dir(transformers) if re.fullmatch(r"\w+(For[A-Z]\w+|LMHeadModel|DoubleHeadsModel)", name)}
    modules = transformers._class_to_module  # type: ignore[attr-defined]
    headed = re.compile(r"For[A-Z]|LMHead|DoubleHeads|Decoder$")
    models = (name for name in named | more if "modeling_" in modules.get(name, "") and not name.startswith("Auto"))
    return sorted(name for name in models if headed.search(name))


def main() -> None:
    from adapters.heads.kinds import MODEL_KINDS
    from adapters.heads.static import CLASSES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--types", nargs="*", help="model types; by default all")
    parser.add_argument("--classes", nargs="*", help="classes; by default all")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "heads.json")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--every", type=int, default=1, help="only each N-th of all")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    import tests.heads.everything  # noqa: F401  # once, before the processes start

    every = arguments.types is None and arguments.classes is None
    types = list(MODEL_KINDS)[:: arguments.every] if every or arguments.types == [] else arguments.types or []
    heads = classes()[:: arguments.every] if every or arguments.classes == [] else arguments.classes or []
    records: dict[str, dict[str, tuple[str, str]]] = {"type": {}, "class": {}}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name in [name for name in heads if name not in CLASSES]:
        records["class"][name] = "refused", "its task is that of no flexible head."
    asked = [("type", name) for name in types] + [("class", name) for name in heads if name in CLASSES]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = pool.map(lambda one: in_process(one[0], one[1], arguments.seconds), asked)
        for (what, name), (outcome, why) in zip(asked, found, strict=True):
            records[what][name] = outcome, why
            print(f"{name:50} {outcome:18} {why}")
            sys.stdout.flush()
            arguments.out.write_text(json.dumps(records, indent=1), encoding="utf-8")
    for what, ones in records.items():
        print(f"\n{len(ones)} {'model types' if what == 'type' else 'classes with a head'}")
        for outcome, count in Counter(outcome for outcome, _ in ones.values()).most_common():
            print(f"{count:5}  {outcome}")


if __name__ == "__main__":
    main()
