"""Configs of PEFT: which method they are, and which of their tensors train."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["method", "trains"]

Config = Mapping[str, Any]

# Random matrices that all sites share; they are stored, but never trained.
_FIXED = {
    "vera": re.compile(r"\bvera_[AB]$"),
    "randlora": re.compile(r"\brandlora_[AB]$"),
}


def method(config: Config) -> str | None:
    """The method of a config of PEFT, by the name that our own configs have for it."""
    kind = str(config.get("peft_type") or "").lower()
    return "dora" if kind == "lora" and config.get("use_dora") else kind or None


def trains(config: Config, tensor: str) -> bool:
    """Whether a tensor of an adapter's file is trained."""
    fixed = _FIXED.get(method(config) or "")
    return not (fixed and fixed.search(tensor))
