"""Heads that predict labels of a whole sequence or image from one vector per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    ImageClassifierOutput,
    Seq2SeqSequenceClassifierOutput,
    SequenceClassifierOutput,
)
from transformers.utils.generic import ModelOutput

from adapters.errors import HeadError
from adapters.heads.base import LabelledHead, PredictionHead, averaged


class RowHead(LabelledHead):
    """A head that labels one vector per row."""

    cls_vector = "required"

    def predict(self, outputs: ModelOutput, cls_output: Tensor | None) -> Tensor:
        return self.run(classification_vector(self, outputs, cls_output))

    def loss_of(self, logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        return label_loss(logits, labels, self.multilabel, count)


class ClassificationHead(RowHead):
    """Predicts one label per row, or a number if there is one label.

        logits = Linear(... tanh(Linear(cls)))

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        num_labels: Labels, a count; 1 means regression with squared error.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        id2label: Names of the labels.
        use_pooler: Take the model's pooler output instead of the state of its classification position.
        bias: Whether the last layer has one.
        dropout_prob: Before each layer; None takes the model's.
        label2id: `id2label` the other way round, as stored.
        structure: What differs from the usual layers (`heads/options.py`); heads of plain classes may have that.
    Raises:
        HeadError: an option has a value that no head can have.
    """

    head_type = "classification"

    def __init__(
        self,
        model: PreTrainedModel,
        head_name: str,
        num_labels: int = 2,
        layers: int = 2,
        activation_function: str | None = "tanh",
        id2label: Mapping[int, str] | None = None,
        use_pooler: bool = False,
        bias: bool = True,
        dropout_prob: float | None = None,
        label2id: Mapping[str, int] | None = None,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head_name)
        self.config = self.describe(
            id2label,
            label2id,
            num_labels=num_labels,
            layers=layers,
            activation_function=activation_function,
            use_pooler=use_pooler,
            bias=bias,
            dropout_prob=dropout_prob,
            structure=structure,
        )
        self.build(model)

    def output_class_for(self, outputs: ModelOutput) -> type[ModelOutput]:
        return Seq2SeqSequenceClassifierOutput if "encoder_last_hidden_state" in outputs else SequenceClassifierOutput


class MultiLabelClassificationHead(ClassificationHead):
    """Predicts any number of labels per row: like `ClassificationHead`, with binary cross entropy."""

    head_type = "multilabel_classification"
    multilabel = True


class ImageClassificationHead(RowHead):
    """Predicts one label, any number of labels (`multilabel`) or a number per image.

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        num_labels: Labels, a count; 1 means regression with squared error.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        multilabel: Whether labels are independent of each other.
        id2label: Names of the labels.
        use_pooler: Take the model's pooler output instead of the state of its first position.
        bias: Whether the last layer has one.
        dropout_prob: Before each layer; None takes the model's.
        label2id: `id2label` the other way round, as stored.
        structure: What differs from the usual layers (`heads/options.py`); heads of plain classes may have that.
    Raises:
        HeadError: an option has a value that no head can have.
    """

    head_type = "image_classification"
    output_class = ImageClassifierOutput

    def __init__(
        self,
        model: PreTrainedModel,
        head_name: str,
        num_labels: int = 2,
        layers: int = 1,
        activation_function: str | None = "tanh",
        multilabel: bool = False,
        id2label: Mapping[int, str] | None = None,
        use_pooler: bool = False,
        bias: bool = True,
        dropout_prob: float | None = None,
        label2id: Mapping[str, int] | None = None,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head_name)
        self.config = self.describe(
            id2label,
            label2id,
            num_labels=num_labels,
            layers=layers,
            activation_function=activation_function,
            multilabel=multilabel,
            use_pooler=use_pooler,
            bias=bias,
            dropout_prob=dropout_prob,
            structure=structure,
        )
        self.build(model)


def classification_vector(head: PredictionHead, outputs: ModelOutput, cls_output: Tensor | None) -> Tensor:
    """The vector per row that a head classifies: what is handed to it, else the pooler's, position 0, a mean."""
    if cls_output is not None:
        return cls_output
    if not head.config.get("use_pooler"):
        states: Tensor = outputs[0]
        return states.mean((-2, -1)) if states.dim() == 4 else states[:, 0]
    if (pooled := outputs.get("pooler_output")) is None:
        raise HeadError(
            f"Head {head.name!r} has use_pooler=True, but this model has no pooler. Add the head with use_pooler=False."
        )
    vector: Tensor = pooled.flatten(1)
    return vector


def label_loss(logits: Tensor, labels: Tensor, multilabel: bool = False, count: Tensor | int | None = None) -> Tensor:
    """Squared error for one label, binary cross entropy if several may hold, else cross entropy."""
    if logits.size(-1) == 1 and not multilabel:
        return averaged(functional.mse_loss, logits.view(-1), labels.view(-1).to(logits.dtype), count)
    if multilabel:
        return averaged(functional.binary_cross_entropy_with_logits, logits, labels.to(logits.dtype), count)
    return averaged(functional.cross_entropy, logits.view(-1, logits.size(-1)), labels.view(-1), count)
