"""A head that predicts a label for each position."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import TokenClassifierOutput
from transformers.utils.generic import ModelOutput

from adapters.heads.base import IGNORE, PositionHead, pad_labels
from adapters.heads.outputs import returned


class TaggingHead(PositionHead):
    """Predicts one label per position (named entities, parts of speech, ...).

    Labels of -100 and of positions that the attention mask leaves out do not count in the loss.

    Options as of `PositionHead`.
    """

    head_type = "tagging"

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
        return returned(TokenClassifierOutput(loss=loss, logits=logits), return_dict)
