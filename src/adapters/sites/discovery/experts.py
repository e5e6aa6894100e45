"""Which parameters of a module are the linear maps of many experts? Those by whose names transformers multiplies.

All experts implementations of transformers ("eager", "batched_mm", "grouped_mm", ...) read the same parameters of such
a module, and its flags say how they are stored:

    x --> gate_up_proj [E, 2 I, H] (or up_proj [E, I, H]) --> act(gate) * up --> down_proj [E, H, I]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adapters.sites.spec import Columns, Experts, Place

FLAGS = ("has_gate", "is_transposed", "is_concatenated")


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds packed experts, such as transformers' ExpertsInterface can run, or by the same names."""
    down = module._parameters.get("down_proj")
    told = all(isinstance(getattr(module, flag, None), bool) for flag in FLAGS)
    return down is not None and down.dim() == 3 and (told or _turned(module) is not None)


def _turned(module: nn.Module) -> bool | None:
    """Whether experts without flags store [E, I, O], by the shapes of both parameters; None if these do not tell."""
    up, down = (module._parameters.get(name) for name in ("gate_up_proj", "down_proj"))
    if up is None or down is None or up.dim() != 3 or down.dim() != 3:
        return None
    one, other = down.shape[1:]
    turned, straight = up.shape[1:] == (other, 2 * one), up.shape[1:] == (2 * other, one)
    return turned if turned != straight else None


def places_in(module: Any, path: str) -> dict[str, Place]:
    """The roles of its parameters; without ffn.up and ffn.gate where their columns cannot be told apart."""
    if not all(hasattr(module, flag) for flag in FLAGS):
        return {"ffn.down": Experts(f"{path}.down_proj", transposed=bool(_turned(module)))}
    transposed = module.is_transposed
    found: dict[str, Place] = {"ffn.down": Experts(f"{path}.down_proj", transposed=transposed)}
    if not module.has_gate:
        return {"ffn.up": Experts(f"{path}.up_proj", transposed=transposed), **found}
    if "gate_up_proj" not in module._parameters:
        return found
    width = int(module.gate_up_proj.shape[2 if transposed else 1])
    if module.is_concatenated:
        halves = Columns(0, 1, of=2), Columns(1, 2, of=2)
    else:  # gate and up of one inner unit stand beside each other
        number = next((name for name, value in vars(module).items() if value == width // 2), None)
        if number is None:
            return found
        repeats = f"{path}.{number}"
        halves = Columns(0, 1, of=2, repeats=repeats), Columns(1, 2, of=2, repeats=repeats)
    chosen = [_numbers(columns, width) for columns in halves]
    gates = [not _is_straight(module, own, width) for own in chosen]
    if gates == [False, True]:
        halves = halves[1], halves[0]
    elif gates != [True, False]:
        return found
    gate, up = (Experts(f"{path}.gate_up_proj", columns, transposed=transposed) for columns in halves)
    return {"ffn.up": up, "ffn.gate": gate, **found}


def _numbers(columns: Columns, width: int) -> list[int]:
    repeats = 1 if columns.repeats == 1 else width // 2
    chosen = Columns(columns.start, columns.stop, columns.of, repeats).of_width(width)
    return list(range(width)[chosen]) if isinstance(chosen, slice) else list(chosen)


@torch.no_grad()
def _is_straight(module: Any, columns: list[int], width: int) -> bool:
    """Whether the gated activation is a straight line in these columns: the gate is what it is not straight in."""
    weight: Tensor = module.down_proj
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, width, generator=generator, dtype=torch.float32).to(weight.device, weight.dtype)
    step = torch.zeros_like(start)
    step[:, columns] = 0.5
    before, at, after = (module._apply_gate(start + number * step) for number in (-1, 0, 1))
    return bool(torch.allclose(before + after, 2 * at, atol=1e-4))
