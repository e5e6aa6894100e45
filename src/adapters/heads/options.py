"""Which values may the options of a head have? Checked before any of its tensors is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real

from transformers.activations import ACT2FN

from adapters.errors import HeadError, choices

MOST_LABELS = 1_000_000
MOST_LAYERS = 100
MOST_TOKENS = 10_000_000
WIDEST = 1_000_000

Rule = tuple[Callable[[object], bool], str]
"""Whether a value is allowed, and in words which ones are."""


def _count(most: int, optional: bool = False) -> Rule:
    def allowed(value: object) -> bool:
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        return whole and 1 <= int(value) <= most if value is not None else optional  # type: ignore[call-overload]

    return allowed, f"an integer from 1 to {most}{' or None' if optional else ''}"


def _probability(value: object) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return value is None or (number and math.isfinite(value) and 0 <= value <= 1)  # type: ignore[arg-type, operator]


YES_OR_NO: Rule = (lambda value: isinstance(value, bool), "True or False")
RULES: dict[str, Rule] = {
    "num_labels": _count(MOST_LABELS),
    "num_choices": _count(MOST_LABELS),
    "layers": _count(MOST_LAYERS),
    "vocab_size": _count(MOST_TOKENS, optional=True),
    "embedding_size": _count(WIDEST, optional=True),
    "dropout_prob": (_probability, "a number from 0 to 1, or None for the model's"),
    "multilabel": YES_OR_NO,
    "use_pooler": YES_OR_NO,
    "bias": YES_OR_NO,
    "layer_norm": YES_OR_NO,
    "shift_labels": YES_OR_NO,
}
"""Option -> the values that it may have."""


def check_options(head_name: str, options: Mapping[str, object]) -> None:
    """Refuse values that no head can have.

    Args:
        head_name: The head they are for.
        options: Its options; those that `RULES` does not know may be anything.
    Raises:
        HeadError: a value is of the wrong type, out of bounds, or names an activation that is not known.
    """
    for name, value in options.items():
        if name in RULES and not RULES[name][0](value):
            raise HeadError(f"Head {head_name!r}: {name} is {value!r}. Allowed: {RULES[name][1]}.")
    activation = options.get("activation_function")
    if activation is not None and (not isinstance(activation, str) or activation not in ACT2FN):
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
