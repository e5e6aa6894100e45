"""What is in a model: the modules of an adapter by place, and the summary table."""

from __future__ import annotations

from typing import Any

from torch import nn

from adapters.runtime.engine import Engine
from adapters.runtime.parts import parameters_of


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
        here = [left.pop(part.location)] if part.location in left else []
        if part.location not in pools or any(True for _ in part.module.parameters()):
            here.append(part.module)
        if here:
            found.setdefault((part.layer, part.location), []).extend(here)
    modules: dict[int, dict[str, nn.Module]] = {}
    for (layer, location), here in sorted(found.items(), key=lambda item: item[0][0]):
        modules.setdefault(layer, {})[location] = here[0] if len(here) == 1 else nn.ModuleList(here)
    return modules


def adapter_summary(engine: Engine, as_dict: bool = False) -> str | list[dict[str, Any]]:
    """One row per adapter, and one for the base model."""
    added = set(map(id, parameters_of(engine.added)))
    base = [p for p in engine.base.parameters() if id(p) not in added]
    total = sum(p.numel() for p in base)
    active = engine.config.active_setup.flatten() if engine.config.active_setup is not None else set()
    rows: list[dict[str, Any]] = []
    for name, parts in engine.parts.items():
        parameters = [p for part in parts for p in part.module.parameters()]
        count = sum(p.numel() for p in parameters)
        config: Any = engine.config.get(name)
        rows.append(
            {
                "name": name,
                "architecture": getattr(config, "architecture", None) or "bottleneck",
                "#param": count,
                "%param": 100 * count / total if total else 0.0,
                "active": name in active,
                "train": any(p.requires_grad for p in parameters),
            }
        )
    trains = any(p.requires_grad for p in base)
    rows.append(
        {"name": "Full model", "architecture": None, "#param": total, "%param": 100.0, "active": None, "train": trains}
    )
    return rows if as_dict else _table(rows)


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
