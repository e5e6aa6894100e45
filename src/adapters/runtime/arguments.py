"""Which arguments does no model here take? Those of other libraries are answered with what to write instead."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from adapters.errors import AdapterError

BASE = "__base__"
"""What PEFT calls a row without adapter."""


class UnknownArgument(AdapterError, TypeError):
    """A call of the model was given an argument that it does not take."""


def refuse_adapter_names(arguments: Mapping[str, object]) -> None:
    """Refuse PEFT's `adapter_names`, one per row, which models of transformers would swallow without effect.

    Args:
        arguments: Named arguments of a call of the model.
    Raises:
        UnknownArgument: it is among them (a TypeError).
    """
    names = arguments.get("adapter_names")
    if names is None:
        return
    block = "BatchSplit('a', 'b', batch_sizes=[2, 1])"
    if isinstance(names, list | tuple) and names:
        runs = [(name, len(list(rows))) for name, rows in groupby(names)]
        children = ", ".join(repr(None if name == BASE else name) for name, _ in runs)
        block = f"BatchSplit({children}, batch_sizes={[size for _, size in runs]})"
    raise UnknownArgument(
        f"adapter_names={names!r} is how PEFT gives every row its adapter. Here that is a set-up: "
        f"`with AdapterSetup({block}): model(...)`, or model.set_active_adapters(...) for all following calls."
    )
