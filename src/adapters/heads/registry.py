"""Which types of prediction heads are there? By the name that stored configs use."""

from __future__ import annotations

from collections.abc import Callable

from adapters.errors import AdapterError, HeadError, choices
from adapters.heads.base import PredictionHead
from adapters.heads.classification import (
    ClassificationHead,
    ImageClassificationHead,
    MultiLabelClassificationHead,
)
from adapters.heads.ctc import CTCHead
from adapters.heads.dependency_parsing import BiaffineParsingHead
from adapters.heads.language_modeling import CausalLMHead, MaskedLMHead, Seq2SeqLMHead
from adapters.heads.multiple_choice import MultipleChoiceHead
from adapters.heads.question_answering import QuestionAnsweringHead
from adapters.heads.tagging import TaggingHead

HeadFactory = Callable[..., PredictionHead]
"""A head class, or any function (model, head_name, **config) -> head."""

HEADS: dict[str, type[PredictionHead]] = {
    "classification": ClassificationHead,
    "multilabel_classification": MultiLabelClassificationHead,
    "image_classification": ImageClassificationHead,
    "multiple_choice": MultipleChoiceHead,
    "tagging": TaggingHead,
    "question_answering": QuestionAnsweringHead,
    "dependency_parsing": BiaffineParsingHead,
    "masked_lm": MaskedLMHead,
    "causal_lm": CausalLMHead,
    "seq2seq_lm": Seq2SeqLMHead,
    "ctc": CTCHead,
}
"""head_type -> class."""

CUSTOM_HEADS: dict[str, HeadFactory] = {}
"""Identifier -> factory of heads that users registered for all models."""


class UnknownHeadType(AdapterError, AttributeError):
    """A head type is neither built in nor registered."""


def register_custom_head(identifier: str, head: HeadFactory) -> None:
    """Makes a head type known to all models, also when they are restored from files.

    Args:
        identifier: Its `head_type` in stored configs.
        head: A `PredictionHead` class or function, called as head(model, head_name, **config).
    Raises:
        HeadError: a built-in type has this name, `identifier` is not a name, or `head` cannot be called.
    """
    check_factory(identifier, head)
    if identifier in HEADS:
        raise HeadError(f"{identifier!r} is a built-in head type. Choose another name for the custom head.")
    CUSTOM_HEADS[identifier] = head


def check_factory(identifier: str, head: HeadFactory) -> None:
    """Raise HeadError unless a head type can have this identifier and be made by calling `head`."""
    if not isinstance(identifier, str) or not identifier:
        raise HeadError(f"A head type cannot be called {identifier!r}. Give a non-empty string.")
    if not callable(head):
        raise HeadError(f"{head!r} makes no heads. Give a PredictionHead class or a function (model, name, **config).")


def find_factory(head_type: str, custom: dict[str, HeadFactory]) -> HeadFactory:
    """The class or factory of a head type.

    Args:
        head_type: As in stored configs.
        custom: Those registered with one model; they come before the ones for all models.
    Raises:
        UnknownHeadType: nothing is registered under this name.
    """
    known: dict[str, HeadFactory] = {**HEADS, **CUSTOM_HEADS, **custom}
    if head_type not in known:
        raise UnknownHeadType(
            f"Unknown head type {head_type!r}. {choices(head_type, known)} "
            "Register custom heads with register_custom_head before adding or loading them."
        )
    return known[head_type]
