"""A head that marks the start and the end of an answer in the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    Seq2SeqQuestionAnsweringModelOutput,
)
from transformers.utils.generic import ModelOutput

from adapters.heads.base import PredictionHead
from adapters.heads.outputs import give


class QuestionAnsweringHead(PredictionHead):
    """Scores each position as start and as end of the answer.

    The loss is the mean over `start_positions` and `end_positions`; positions beyond the input do not count.

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        num_labels: 2: start and end.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        id2label: Names of the two scores.
        dropout_prob: Before each layer; None takes the model's.
        label2id: `id2label` the other way round, as stored.
    Raises:
        HeadError: an option has a value that no head can have.
    """

    head_type = "question_answering"
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
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        logits = self.run(outputs[0])
        start, end = logits[..., 0].contiguous(), logits[..., 1].contiguous()
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (position_loss(start, start_positions) + position_loss(end, end_positions)) / 2
        kind = (
            Seq2SeqQuestionAnsweringModelOutput
            if "encoder_last_hidden_state" in outputs
            else QuestionAnsweringModelOutput
        )
        return give(kind(loss=loss, start_logits=start, end_logits=end), return_dict)

    def get_label_names(self) -> list[str]:
        return ["start_positions", "end_positions"]


def position_loss(scores: Tensor, positions: Tensor) -> Tensor:
    """Cross entropy over positions [B, S], without rows whose position lies outside."""
    length = scores.size(1)
    return nn.functional.cross_entropy(scores, positions.view(-1).clamp(0, length), ignore_index=length)
