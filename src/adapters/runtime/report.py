"""What is in a model: the modules of an adapter by place, and the summary table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from adapters.runtime.engine import Engine
from adapters.runtime.parts import Part, parameters_of


def adapter_modules(engine: Engine, name: str) -> dict[int, dict[str, nn.Module]]:
    """{layer: {location: module}}; several modules at one location form a ModuleList.

    What all layers read from one module, as a prefix, is listed at the first of them.
    """
    parts = engine.parts[name]
    pools = dict(child for part in parts if not part.location for child in part.module.named_children())
    left = dict(pools)
    found: dict[tuple[int, str], list[nn.Module]] = {}
    for part in parts:
        if not part.location:
            continue
        pool = part.location if part.hooked is None else getattr(part.hooked.site, "pool", part.location)
        here = [left.pop(pool)] if pool in left else []
        if pool not in pools or any(True for _ in part.module.parameters()):
            here.append(part.module)
        if here:
            found.setdefault((part.layer, part.location), []).extend(here)
    modules: dict[int, dict[str, nn.Module]] = {}
    for (layer, location), here in sorted(found.items(), key=lambda item: item[0][0]):
        modules.setdefault(layer, {})[location] = here[0] if len(here) == 1 else nn.ModuleList(here)
    return modules


def adapter_summary(engine: Engine, as_dict: bool = False) -> str | list[dict[str, Any]]:
    """One row per adapter, one for what each block owns, and one for the base model."""
    added = set(map(id, parameters_of(engine.added)))
    base = [p for p in engine.base.parameters() if id(p) not in added]
    total = sum(p.numel() for p in base)
    setup = engine.config.active_setup
    active = set() if setup is None else setup.flatten()
    rows: list[dict[str, Any]] = []

    def add(name: str, architecture: str | None, parameters: Sequence[nn.Parameter], active: bool | None) -> None:
        count = sum(p.numel() for p in parameters)
        share = 100 * count / total if total else 0.0
        trains = any(p.requires_grad for p in parameters)
        row = {"name": name, "architecture": architecture, "#param": count, "%param": share}
        rows.append({**row, "active": active, "train": trains})

    for name in engine.parts:
        architecture = getattr(engine.config.get(name), "architecture", None)
        add(name, architecture or "bottleneck", _parameters(engine.parts[name]), name in active)
    for noun, owned in engine.owned.items():
        used = {block.owned_name for block in owned.blocks_in(setup)}
        for name in owned:
            add(name, noun, _parameters(owned[name]), name in used)
    add("Full model", None, base, None)
    return rows if as_dict else _table(rows)


def _parameters(parts: Iterable[Part]) -> list[nn.Parameter]:
    return [p for part in parts for p in part.module.parameters()]


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["Name", "Architecture", "#Param", "%Param", "Active", "Train"]
    cells = [
        [
            row["name"],
            row["architecture"] or "",
            f"{row['#param']:,}",
            f"{row['%param']:.3f}",
            "" if row["active"] is None else str(int(row["active"])),
            str(int(row["train"])),
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    left = 2

    def line(values: list[str]) -> str:
        return "  ".join(
            value.ljust(width) if i < left else value.rjust(width)
            for i, (value, width) in enumerate(zip(values, widths))
        )

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *map(line, cells[:-1]), rule, line(cells[-1])])
