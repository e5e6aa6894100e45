"""A head that marks the start and the end of an answer in the input."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    Seq2SeqQuestionAnsweringModelOutput,
)
from transformers.utils.generic import ModelOutput

from adapters.heads.base import PositionHead
from adapters.heads.outputs import returned


class QuestionAnsweringHead(PositionHead):
    """Scores each position as start and as end of the answer.

    The loss is the mean over `start_positions` and `end_positions`; positions beyond the input do not count.

    Options as of `PositionHead`; `num_labels` is 2: start and end.
    """

    head_type = "question_answering"

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
        return returned(kind(loss=loss, start_logits=start, end_logits=end), return_dict)

    def get_label_names(self) -> list[str]:
        return ["start_positions", "end_positions"]


def position_loss(scores: Tensor, positions: Tensor) -> Tensor:
    """Cross entropy over positions [B, S], without rows whose position lies outside."""
    length = scores.size(1)
    return nn.functional.cross_entropy(scores, positions.view(-1).clamp(0, length), ignore_index=length)
