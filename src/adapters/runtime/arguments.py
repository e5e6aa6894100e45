"""Which arguments does no model here take? They are answered with what to write instead."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.errors import AdapterError

BASE = "__base__"
"""What PEFT calls a row without adapter."""


class UnknownArgument(AdapterError, TypeError):
    """A call of the model was given an argument that it does not take."""


def refuse_adapter_names(arguments: Mapping[str, object]) -> None:
    """Refuse `adapter_names`, one per row, where models of transformers would swallow it without effect.

    Args:
        arguments: Named arguments of what a call of the model runs.
    Raises:
        UnknownArgument: it is among them (a TypeError).
    """
    if arguments.get("adapter_names") is not None:
        raise UnknownArgument(
            "adapter_names is read by calls of the model and by generate, and this is none: call model(...) itself, "
            "not its forward. Compile it in place, by model.compile(): what torch.compile(model) makes would be "
            "compiled anew for every order of names."
        )
