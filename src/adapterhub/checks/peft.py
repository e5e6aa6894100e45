"""Which tensors a config of PEFT makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .tensors import Comparison, Header

__all__ = ["compare"]

_LORA = re.compile(r"(?P<path>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.[^.]+)??(?:\.weight)?")


def compare(config: Mapping[str, Any], tensors: Header) -> Comparison:
    """How the tensors of an adapter of PEFT differ from what its config makes, for the methods most used."""
    found = Comparison()
    if not tensors:
        found.missing.append("all tensors")
    kind = str(config.get("peft_type")).upper()
    if kind == "LORA":
        _lora(config, tensors, found)
    elif kind == "IA3":
        _ia3(tensors, found)
    elif kind in ("PREFIX_TUNING", "PROMPT_TUNING"):
        _prompt(config, tensors, found, several=kind == "PROMPT_TUNING")
    return found


def _lora(config: Mapping[str, Any], tensors: Header, found: Comparison) -> None:
    rank = None if config.get("rank_pattern") or config.get("target_parameters") else config.get("r")
    sides: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for key, (_, shape) in tensors.items():
        if match := _LORA.fullmatch(key):
            sides.setdefault(match["path"], {})[match["side"]] = (key, shape)
    for path, pair in sides.items():
        found.missing += [f"{path}.lora_{side}" for side in "AB" if side not in pair]
        for side, (key, shape) in pair.items():
            at = 0 if side == "A" else 1
            if len(shape) < 2 or (isinstance(rank, int) and shape[at] != rank):
                wanted = f"({rank or 'r'}, in)" if side == "A" else f"(out, {rank or 'r'})"
                found.wrong.append(f"{key!r} has the shape {shape}, but the config makes {wanted}.")
        if rank is None and len(pair) == 2 and not config.get("target_parameters"):
            (down, a), (up, b) = pair["A"], pair["B"]
            if len(a) > 1 and len(b) > 1 and a[0] != b[1]:
                found.wrong.append(f"{down!r} has rank {a[0]}, but {up!r} has rank {b[1]}.")
    if not sides and tensors:
        found.missing.append("all tensors of 'lora_A' and 'lora_B'")


def _ia3(tensors: Header, found: Comparison) -> None:
    vectors = {key: shape for key, (_, shape) in tensors.items() if ".ia3_l" in key}
    for key, shape in vectors.items():
        if 1 not in shape[:2]:
            found.wrong.append(f"{key!r} has the shape {shape}, but the config makes (out, 1) or (1, in).")
    if tensors and not vectors:
        found.missing.append("all tensors of 'ia3_l'")


def _prompt(config: Mapping[str, Any], tensors: Header, found: Comparison, *, several: bool) -> None:
    count = config.get("num_virtual_tokens")
    if "prompt_embeddings" not in tensors:
        found.missing += ["prompt_embeddings"] if tensors else []
        return
    _, shape = tensors["prompt_embeddings"]
    rows = shape[0] if len(shape) == 2 else -1
    if isinstance(count, int) and count > 0 and rows != count and not (several and rows > 0 and rows % count == 0):
        found.wrong.append(f"'prompt_embeddings' has the shape {shape}, but 'num_virtual_tokens' is {count}.")
