"""Which values may the options of a head have? Checked before any of its tensors is made."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from transformers.activations import ACT2FN

from adapters.errors import HeadError, choices
from adapters.heads.pooling import POOLINGS
from adapters.methods.config import Rule, flag, integer, nothing, one_of, text

MOST_LABELS = 1_000_000
MOST_LAYERS = 100
MOST_TOKENS = 10_000_000
WIDEST = 1_000_000


def _count(most: int) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and 1 <= int(value) <= most

    return Rule(f"an integer from 1 to {most}", holds, {"type": "integer", "minimum": 1, "maximum": most})


def _is_probability(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1


def _is_positive(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 < float(value) < float("inf")


_POSITIVE = Rule("a number above 0", _is_positive, {"type": "number", "exclusiveMinimum": 0})
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
STRUCTURE: Mapping[str, Rule] = {
    "input_size": _count(WIDEST),
    "inner_size": _count(WIDEST),
    "layer_norm": flag,
    "norm_eps": _POSITIVE,
    "pooling": one_of(*POOLINGS),
    "scale": _POSITIVE,
    "cap": _POSITIVE,
}
"""Entries of `structure`: widths of the first and of the layers between, norms behind those and their epsilon, the
vector per row that is read, and for tokens logits = cap * tanh(scale * logits / cap)."""


def _is_structure(value: Any) -> bool:
    return isinstance(value, Mapping) and all(n in STRUCTURE and STRUCTURE[n].holds(v) for n, v in value.items())


_ENTRIES = "; ".join(f"{name}: {rule.allowed}" for name, rule in STRUCTURE.items())
RULES: Mapping[str, Rule] = {
    "head_type": text,
    "num_labels": _count(MOST_LABELS),
    "num_choices": _count(MOST_LABELS),
    "layers": _count(MOST_LAYERS),
    "vocab_size": _count(MOST_TOKENS) | nothing,
    "embedding_size": _count(WIDEST) | nothing,
    "dropout_prob": Rule("a number from 0 to 1", _is_probability, _PROBABILITY) | nothing,
    "activation_function": text | nothing,
    "multilabel": flag,
    "use_pooler": flag,
    "bias": flag,
    "layer_norm": flag,
    "shift_labels": flag,
    "blank": integer(0) | nothing,
    "reduction": one_of("mean", "sum") | nothing,
    "zero_infinity": flag | nothing,
    "structure": Rule(f"a dict of ({_ENTRIES})", _is_structure, {"type": "object"}) | nothing,
}
"""Option of a head, or field of its config -> the values that it may have. Custom heads may have others."""


def wrong_option(options: Mapping[str, object]) -> str | None:
    """What is wrong with the options of a head, the first of it; None if each has a value that it may have."""
    for name, rule in RULES.items():
        if name in options and not rule.holds(options[name]):
            return f"{name} is {options[name]!r}. Allowed: {rule.allowed}."
    return None


def check_options(head_name: str, options: Mapping[str, object]) -> None:
    """Refuse values that no head can have.

    Args:
        head_name: The head they are for.
        options: Its options; those that `RULES` does not know may be anything.
    Raises:
        HeadError: a value is of the wrong type, out of bounds, or names an activation that is not known.
    """
    activation = options.get("activation_function")
    if wrong := wrong_option(options):
        raise HeadError(f"Head {head_name!r}: {wrong}")
    if activation is not None and activation not in ACT2FN:
        raise HeadError(f"Head {head_name!r}: no activation {activation!r}. {choices(activation, ACT2FN)}")


def label_map(id2label: Mapping[int, str] | None, label2id: Mapping[str, int] | None, count: int) -> dict[str, int]:
    """Label -> id as stored in head configs: the given map, or LABEL_0, LABEL_1, ...

    Raises:
        HeadError: what was given is no map between labels and ids.
    """
    given = id2label if id2label is not None else label2id
    if given is None:
        return {f"LABEL_{index}": index for index in range(count)}
    try:
        if id2label is not None:
            return {label: int(index) for index, label in id2label.items()}
        return {label: int(index) for label, index in (label2id or {}).items()}
    except (AttributeError, TypeError, ValueError) as error:
        name, kind = ("label2id", "{label: id}") if id2label is None else ("id2label", "{id: label}")
        raise HeadError(f"{name} is {given!r}. Allowed: a dict {kind} whose ids are integers, or None.") from error
