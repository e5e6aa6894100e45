"""Does a saved adapter say the same elsewhere? Load it into a fresh base model in a new process.

Usage: python demo/predict.py OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import base
import torch
from base import Settings, Texts
from methods import METHODS, REFERENCES

import adapters

TOLERANCE = 1e-5


def main(out: Path) -> None:
    """Compare the logits of each saved adapter with those of its training; exit on a difference."""
    settings, texts = Settings.load(out), Texts.load(out)
    tokenizer = base.load_tokenizer(settings)
    some = [text for text, _ in texts.test[: base.COMPARED]]
    comparisons = {}
    for method in settings.methods:
        if method in REFERENCES:
            continue
        folder = base.folder_of(out, method, 0)
        model = adapters.AutoAdapterModel.from_pretrained(settings.model)
        name = model.load_adapter(str(folder), set_active=True)
        then = torch.load(folder / "logits.pt", weights_only=True)
        now = base.predict(model, some, tokenizer, settings)
        difference = (then - now).abs().max().item()
        same = int((then.argmax(-1) == now.argmax(-1)).sum())
        comparisons[method] = {"max_difference": difference, "same_class": same, "texts": len(some)}
        print(
            f"  {METHODS[method].title:<15} loaded as {name!r:<13} same area for {same} of {len(some)} texts,"
            f" largest difference of a logit {difference:.1e}"
        )
        if difference > TOLERANCE:
            raise SystemExit(f"{folder} predicts something else than the model it was saved from.")
    base.write_json(out / "reloaded.json", comparisons)


if __name__ == "__main__":
    base.quiet()
    main(Path(sys.argv[1]))
