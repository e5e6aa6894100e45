"""What came out? One row per method, from the figures of all seeds, as a table in three formats and a plot.

Usage: python demo/report.py OUT -- draws everything again from the figures of a finished run.
"""

from __future__ import annotations

import platform
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import base
from base import Settings, Texts
from methods import METHODS

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Figure:
    """A measured value: the mean over the seeds and the standard deviation.

    Args:
        mean: Mean over the seeds.
        seeds: Number of values.
        spread: Sample standard deviation, 0 for one seed.
    """

    mean: float
    seeds: int
    spread: float

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        """Mean and standard deviation of the values."""
        return cls(statistics.fmean(values), len(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    def show(self, form: str, unit: float = 1.0) -> str:
        """Text such as `0.712 +- 0.004`; the spread only for several seeds."""
        text = format(self.mean / unit, form)
        return f"{text} ± {format(self.spread / unit, form)}" if self.seeds > 1 else text


@dataclass(frozen=True)
class Row:
    """The figures of one method.

    Args:
        title: Name of the method.
        trained: Trained parameters.
        share: Trained parameters per parameter of the model.
        file: Bytes on disk.
        accuracy: Share of test texts whose area was predicted.
        macro_f1: Mean F1 score of the areas.
        seconds: Training time.
        memory: Peak memory of training in bytes, None where the system does not tell.
    """

    title: str
    trained: int
    share: float
    file: Figure
    accuracy: Figure
    macro_f1: Figure
    seconds: Figure
    memory: Figure | None

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        return (
            self.title,
            f"{self.trained:,}",
            f"{self.share:.1%}" if self.share >= 0.001 else f"{self.share:.2%}",
            f"{self.file.mean / MEBIBYTE:.2f}",
            self.accuracy.show(".3f"),
            self.macro_f1.show(".3f"),
            self.seconds.show(".0f"),
            self.memory.show(".0f", MEBIBYTE) if self.memory else "-",
        )


HEADINGS = ("method", "trained", "share", "file MiB", "accuracy", "macro F1", "time s", "memory MiB")


def collect(out: Path) -> list[Row]:
    """One row per method of the run, in its order."""
    settings = Settings.load(out)
    rows = []
    for method in settings.methods:
        runs = [base.read_json(out / "runs" / f"{method}-{seed}.json") for seed in range(settings.seeds)]
        figures = {
            key: Figure.of([float(run[key]) for run in runs])
            for key in ("file_bytes", "accuracy", "macro_f1", "train_seconds", "peak_bytes")
            if all(run[key] is not None for run in runs)
        }
        rows.append(
            Row(
                METHODS[method].title,
                runs[0]["trained_parameters"],
                runs[0]["trained_parameters"] / runs[0]["all_parameters"],
                figures["file_bytes"],
                figures["accuracy"],
                figures["macro_f1"],
                figures["train_seconds"],
                figures.get("peak_bytes"),
            )
        )
    return rows


def majority(texts: Texts) -> tuple[str, dict[str, float]]:
    """The baseline that always answers the area most frequent in training, and its scores."""
    label = Counter(label for _, label in texts.train).most_common(1)[0][0]
    true = [label for _, label in texts.test]
    return texts.labels[label], base.scores([label] * len(true), true)


def table(rows: list[Row], baseline: dict[str, float]) -> list[tuple[str, ...]]:
    """Headings, baseline and methods as cells of text."""
    guess = (
        "always one area",
        "0",
        "-",
        "-",
        f"{baseline['accuracy']:.3f}",
        f"{baseline['macro_f1']:.3f}",
        "-",
        "-",
    )
    return [HEADINGS, guess, *(row.cells() for row in rows)]


def plain(cells: list[tuple[str, ...]], indent: str = "  ") -> str:
    """The table for a terminal."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        indent
        + row[0].ljust(widths[0])
        + "".join(f"  {cell.rjust(width)}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in cells
    ]
    lines.insert(1, indent + "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def markdown(cells: list[tuple[str, ...]]) -> str:
    """The table for a Markdown file."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    lines.insert(1, "|---|" + "---:|" * (len(cells[0]) - 1))
    return "\n".join(lines)


def notes(settings: Settings, texts: Texts) -> str:
    """What the table's columns mean and how the run was made."""
    seeds = f"mean ± standard deviation of {settings.seeds} seeds" if settings.seeds > 1 else "one seed"
    return (
        f"{len(texts.train):,} training and {len(texts.test):,} test docstrings of {len(texts.labels)} areas; "
        f"{settings.epochs} epoch(s), at most {settings.max_tokens} tokens, batches of {settings.batch_size}, "
        f"{seeds}. *trained*: parameters that learn, the prediction head included; *file*: what is stored "
        "besides the base model (for full fine-tuning, the whole model); *time*: `Trainer.train()`; *memory*: "
        "peak resident memory in training steps on the longest texts minus that of the same process before the "
        "model is loaded, each method in a process of its own. Chance alone, in the choice of test texts, leaves "
        f"each accuracy a standard error of {0.5 / len(texts.test) ** 0.5:.3f} or a little less. "
        f"Python {platform.python_version()}, {platform.machine()}, {cores()} cores."
    )


def cores() -> int:
    """CPU cores that the run may use."""
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write(out: Path) -> str:
    """Write results.json, results.md and results.png; return the table for the terminal."""
    settings, texts = Settings.load(out), Texts.load(out)
    rows = collect(out)
    area, baseline = majority(texts)
    cells = table(rows, baseline)
    runs = [
        base.read_json(out / "runs" / f"{method}-{seed}.json")
        for method in settings.methods
        for seed in range(settings.seeds)
    ]
    content: dict[str, Any] = {
        "labels": texts.labels,
        "texts": {"train": len(texts.train), "test": len(texts.test)},
        "baseline": {"answer": area, **baseline},
        "learning_rates": {method: METHODS[method].learning_rate for method in settings.methods},
        "configs": {method: METHODS[method].config for method in settings.methods},
        "runs": runs,
        **{
            stage: base.read_json(out / f"{stage}.json")
            for stage in ("reloaded", "composed")
            if (out / f"{stage}.json").exists()
        },
    }
    base.write_json(out / "results.json", content)
    parts = ("# Adapters on docstrings", markdown(cells), notes(settings, texts), "![plot](results.png)")
    (out / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plot(rows, baseline["accuracy"], settings, out / "results.png")
    return plain(cells)


INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
ADAPTER, REFERENCE = "#0b7285", "#b08900"


def plot(rows: list[Row], baseline: float, settings: Settings, path: Path) -> None:
    """Accuracy against trained parameters, and what training costs next to it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter

    titles = {METHODS[key].title for key in ("head", "full")}
    colours = [REFERENCE if row.title in titles else ADAPTER for row in rows]
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.edgecolor": GRID,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplot_mosaic(
            [["score", "time"], ["score", "memory"]],
            figsize=(11, 5.2),
            width_ratios=(1.75, 1),
            layout="constrained",
        )
        score = axes["score"]
        score.set_axisbelow(True)
        score.grid(color=GRID)
        score.set_xscale("log")
        score.set_xlim(min(row.trained for row in rows) / 2.5, max(row.trained for row in rows) * 2.5)
        lowest, highest = min(row.accuracy.mean for row in rows), max(row.accuracy.mean for row in rows)
        margin = max(0.2 * (highest - lowest), 0.08 - (highest - lowest) / 2)  # no drama from small differences
        score.set_ylim(lowest - margin, highest + margin)
        for row, colour in zip(rows, colours, strict=True):
            score.errorbar(
                row.trained,
                row.accuracy.mean,
                yerr=row.accuracy.spread or None,
                fmt="o",
                ms=10,
                color=colour,
                capsize=4,
            )
        for colour, label in ((ADAPTER, "adapter"), (REFERENCE, "reference without adapter")):
            score.plot([], [], "o", ms=8, color=colour, label=label)
        figure.legend(loc="upper right", ncols=2, frameon=False, labelcolor=MUTED, handletextpad=0.2)
        score.set_xlabel("trained parameters (logarithmic scale)")
        score.set_ylabel("accuracy on the test half")
        seeds = f" (mean ± standard deviation of {settings.seeds} seeds)" if settings.seeds > 1 else ""
        score.set_title(f"Accuracy against trained parameters{seeds}", loc="left", fontweight="bold", fontsize=11)
        score.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        score.text(
            0.985,
            0.02,
            f"always the most frequent area: {baseline:.2f}",
            transform=score.transAxes,
            ha="right",
            color=MUTED,
            fontsize=9,
        )
        bars(axes["time"], rows, [row.seconds for row in rows], colours, "Training time (s)", 1.0)
        bars(
            axes["memory"],
            rows,
            [row.memory for row in rows],
            colours,
            "Peak memory of training (MiB)",
            MEBIBYTE,
        )
        title = "Which area is a docstring from? Adapters and two references"
        figure.suptitle(title, x=0.01, ha="left", fontsize=13)
        figure.get_layout_engine().set(h_pad=0.12, hspace=0.05, wspace=0.03)
        name_points(score, rows)
        figure.savefig(path, dpi=140)
        pyplot.close(figure)


def name_points(axes: Any, rows: list[Row]) -> None:
    """Name each point on the side where its name covers least of other names, points and the frame."""
    axes.figure.canvas.draw()  # sizes of texts and of the frame are known only now
    dots = [axes.transData.transform((row.trained, row.accuracy.mean)) for row in rows]
    taken = [(x - 12, y - 12, x + 12, y + 12) for x, y in dots]
    frame = axes.get_window_extent()
    for row, dot in zip(rows, dots, strict=True):
        bar = abs(axes.transData.transform((row.trained, row.accuracy.mean + row.accuracy.spread))[1] - dot[1])
        rise = 9 + bar * 72 / axes.figure.dpi
        best = None
        for shift, horizontal, vertical in (
            ((0, rise), "center", "bottom"),
            ((0, -rise), "center", "top"),
            ((11, 0), "left", "center"),
            ((-11, 0), "right", "center"),
        ):
            label = axes.annotate(
                f"{row.title}\n{count(row.trained)}",
                (row.trained, row.accuracy.mean),
                xytext=shift,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                linespacing=1.25,
                fontsize=9.5,
            )
            x0, y0, x1, y1 = label.get_window_extent().extents
            covered = sum(
                max(0, min(x1, ox1) - max(x0, ox0)) * max(0, min(y1, oy1) - max(y0, oy0))
                for (ox0, oy0, ox1, oy1), own in zip(taken, [*dots, *[None] * len(rows)], strict=False)
                if own is not dot
            )
            outside = max(0, frame.x0 - x0) + max(0, x1 - frame.x1) + max(0, frame.y0 - y0) + max(0, y1 - frame.y1)
            cost = covered + outside * 100
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, label, (x0, y0, x1, y1))
            else:
                label.remove()
        assert best is not None
        taken.append(best[2])


def bars(axes: Any, rows: list[Row], figures: list[Figure | None], colours: list[str], title: str, unit: float) -> None:
    """Horizontal bars, one per method, each with its value."""
    values = [figure.mean / unit if figure else 0.0 for figure in figures]
    places = range(len(rows))
    axes.barh(places, values, color=colours, height=0.62)
    axes.set_yticks(list(places), [row.title for row in rows], color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, max([*values, 1.0]) * 1.16)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    for place, value, figure in zip(places, values, figures, strict=True):
        axes.text(
            value + max(values) * 0.02,
            place,
            f"{value:.0f}" if figure else "not measured",
            va="center",
            fontsize=9,
        )


def count(value: float) -> str:
    """A number of parameters as people say it: 4.2k, 113k, 22.7M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
