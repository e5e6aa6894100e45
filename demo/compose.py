"""How do several adapters share one model? Parallel asks all about each text, BatchSplit one per row.

Usage: python demo/compose.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import base
import torch
from base import Settings, Texts
from methods import METHODS, REFERENCES

import adapters
from adapters import AdapterSetup, BatchSplit, Parallel

TOLERANCE = 1e-4
WIDTH = 60


def main(out: Path) -> None:
    """Compose all adapters of the run in one model; exit where a row differs from its single run."""
    settings, texts = Settings.load(out), Texts.load(out)
    tokenizer = base.load_tokenizer(settings)
    names = [method for method in settings.methods if method not in REFERENCES]
    model = adapters.AutoAdapterModel.from_pretrained(settings.model)
    for name in names:
        model.load_adapter(str(base.folder_of(out, name, 0)))
    model.eval()
    print(model.adapter_summary())

    rows = shown(texts, 2 * len(names))
    batch = next(base.batches([text for text, _ in rows], tokenizer, settings, size=len(rows)))
    single = {name: run(model, name, batch).logits for name in names}
    report: dict[str, Any] = {
        "adapters": names,
        "parallel": parallel(model, names, batch, rows, texts.labels, single),
        "batch_split": batch_split(model, names, batch, rows, texts.labels, single),
        "ensemble": ensemble(model, names, texts, tokenizer, settings),
    }
    base.write_json(out / "composed.json", report)
    worst = max(report["parallel"]["max_difference"], report["batch_split"]["max_difference"])
    if worst > TOLERANCE:
        raise SystemExit(f"A composed run differs from the single runs by {worst:.1e}.")


def parallel(
    model: Any,
    names: list[str],
    batch: Any,
    rows: list[tuple[str, int]],
    labels: tuple[str, ...],
    single: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """One call, every adapter on every text: a table of texts and what each adapter says."""
    outputs = run(model, Parallel(*names), batch)
    difference = max((outputs[i].logits - single[name]).abs().max().item() for i, name in enumerate(names))
    print(f"\n  Parallel({', '.join(names)}): one call, {len(rows)} texts, {len(names)} answers to each\n")
    for row, (text, label) in enumerate(rows[: len(names)]):
        print(f"    {excerpt(text)}")
        print(f"      {'written for':<16} {labels[label]}")
        for i, name in enumerate(names):
            print(f"      {METHODS[name].title:<16} {answer(outputs[i].logits[row], labels)}")
    print(f"\n    Largest difference from the adapters run one by one: {difference:.1e}")
    return {"texts": len(rows), "max_difference": difference}


def batch_split(
    model: Any,
    names: list[str],
    batch: Any,
    rows: list[tuple[str, int]],
    labels: tuple[str, ...],
    single: dict[str, torch.Tensor],
) -> dict[str, Any]:
    """One mixed batch: the first rows are for the first adapter, the next ones for the second, and so on."""
    sizes = [len(rows) // len(names)] * len(names)
    logits = run(model, BatchSplit(*names, batch_sizes=sizes), batch).logits
    print(f"\n  BatchSplit({', '.join(names)}, batch_sizes={sizes}): one mixed batch, each row to one adapter\n")
    difference = 0.0
    for row, (text, label) in enumerate(rows):
        name = names[row // sizes[0]]
        difference = max(difference, (logits[row] - single[name][row]).abs().max().item())
        mark = "" if int(logits[row].argmax()) == label else f"   (written for {labels[label]})"
        print(f"    {METHODS[name].title:<16} {excerpt(text)}\n{'':<21}{answer(logits[row], labels)}{mark}")
    print(f"\n    Largest difference from the adapters run one by one: {difference:.1e}")
    return {"batch_sizes": sizes, "max_difference": difference}


def ensemble(
    model: Any, names: list[str], texts: Texts, tokenizer: Any, settings: Settings
) -> dict[str, dict[str, float]]:
    """A use of Parallel: the mean of all adapters' logits as one more classifier, on the whole test half."""
    means = []
    with torch.no_grad(), AdapterSetup(Parallel(*names)):
        for batch in base.batches([text for text, _ in texts.test], tokenizer, settings):
            outputs = model(**batch)
            means.append(torch.stack([outputs[i].logits for i in range(len(names))]).mean(0))
    found = base.scores(torch.cat(means).argmax(-1).tolist(), [label for _, label in texts.test])
    print(f"\n  All {len(names)} as one: the mean of their logits has accuracy {found['accuracy']:.3f}.")
    return {"mean_of_logits": found}


def run(model: Any, setup: Any, batch: Any) -> Any:
    """One forward call with a set-up that is active only here."""
    with torch.no_grad(), AdapterSetup(setup):
        return model(**batch)


def shown(texts: Texts, count: int) -> list[tuple[str, int]]:
    """Short test texts of changing areas, so that a screen holds them."""
    by_area: dict[int, list[tuple[str, int]]] = {}
    for text, label in texts.test:
        if 30 <= len(text) <= WIDTH + 30:
            by_area.setdefault(label, []).append((text, label))
    queues = [by_area[label] for label in sorted(by_area)]
    longest = max(len(queue) for queue in queues)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)][:count]


def excerpt(text: str) -> str:
    """The text in quotes, cut to fit a line."""
    return '"' + (text if len(text) <= WIDTH + 15 else text[: WIDTH + 11].rstrip() + " ...") + '"'


def answer(logits: torch.Tensor, labels: tuple[str, ...]) -> str:
    """The predicted area and its probability."""
    probability, label = logits.softmax(-1).max(-1)
    return f"{labels[int(label)]} ({probability.item():.0%})"


if __name__ == "__main__":
    base.quiet()
    main(Path(sys.argv[1]))
