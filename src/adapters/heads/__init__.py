"""Prediction heads: what turns the states of a base model into labels, positions or tokens."""

from adapters.heads.base import PredictionHead
from adapters.heads.classification import (
    ClassificationHead,
    ImageClassificationHead,
    MultiLabelClassificationHead,
)
from adapters.heads.ctc import CTCHead
from adapters.heads.dependency_parsing import BiaffineParsingHead, DependencyParsingOutput
from adapters.heads.language_modeling import CausalLMHead, MaskedLMHead, Seq2SeqLMHead
from adapters.heads.mixin import FlexibleHeadsMixin
from adapters.heads.multiple_choice import MultipleChoiceHead
from adapters.heads.outputs import MultiHeadOutput
from adapters.heads.question_answering import QuestionAnsweringHead
from adapters.heads.registry import CUSTOM_HEADS, HEADS, register_custom_head
from adapters.heads.tagging import TaggingHead

BertStyleMaskedLMHead = MaskedLMHead
ModelWithFlexibleHeadsAdaptersMixin = FlexibleHeadsMixin

__all__ = [
    "FlexibleHeadsMixin",
    "ModelWithFlexibleHeadsAdaptersMixin",
    "PredictionHead",
    "MultiHeadOutput",
    "DependencyParsingOutput",
    "ClassificationHead",
    "MultiLabelClassificationHead",
    "ImageClassificationHead",
    "MultipleChoiceHead",
    "TaggingHead",
    "QuestionAnsweringHead",
    "BiaffineParsingHead",
    "MaskedLMHead",
    "BertStyleMaskedLMHead",
    "CausalLMHead",
    "Seq2SeqLMHead",
    "CTCHead",
    "HEADS",
    "CUSTOM_HEADS",
    "register_custom_head",
]
