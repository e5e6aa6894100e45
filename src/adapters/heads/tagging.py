"""A head that predicts a label for each position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils.generic import ModelOutput

from adapters.heads.base import IGNORE, PredictionHead, pad_labels
from adapters.heads.outputs import give


class TaggingHead(PredictionHead):
    """Predicts one label per position (named entities, parts of speech, ...).

    Labels of -100 and of positions that the attention mask leaves out do not count in the loss.

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        num_labels: Labels, a count.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        id2label: Names of the labels.
        dropout_prob: Before each layer; None takes the model's.
        label2id: `id2label` the other way round, as stored.
    Raises:
        HeadError: an option has a value that no head can have.
    """

    head_type = "tagging"
    cls_vector = "no"

    def __init__(
        self,
        model: PreTrainedModel,
        head_name: str,
        num_labels: int = 2,
        layers: int = 1,
        activation_function: str | None = "tanh",
        id2label: Mapping[int, str] | None = None,
        dropout_prob: float | None = None,
        label2id: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(head_name)
        self.config = self.describe(
            id2label,
            label2id,
            num_labels=num_labels,
            layers=layers,
            activation_function=activation_function,
            dropout_prob=dropout_prob,
        )
        self.build(model)

    def forward(
        self,
        outputs: ModelOutput,
        cls_output: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = False,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        logits = self.run(outputs[0])
        loss = None
        if labels is not None:
            if attention_mask is not None:
                labels = labels.masked_fill(attention_mask[:, -labels.size(1) :] != 1, IGNORE)
            targets = pad_labels(labels, logits.size(1))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        return give(TokenClassifierOutput(loss=loss, logits=logits), return_dict)
