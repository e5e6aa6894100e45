"""A head that recognises speech: tokens per frame, in order but without their times (CTC)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils.generic import ModelOutput

from adapters.heads.base import PredictionHead
from adapters.heads.outputs import returned


class CTCHead(PredictionHead):
    """Scores each token of a vocabulary, and the blank, in each frame of a sound (Graves et al. 2006).

        loss = -log sum over the frame sequences that read as the labels: prod over frames of softmax(logits)[token]

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        vocab_size: Tokens with the blank, a count; None takes the model's.
        blank: Id of the blank; None takes the model's padding token, which speech models use for it.
        reduction: How the losses of rows become one: "mean" (each divided by its number of labels first) or "sum";
            None takes what the model's config says.
        zero_infinity: Whether rows with more labels than frames count as 0 instead of infinite; None takes the model's.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        dropout_prob: Before each layer; None takes the model's.
        id2label: Not used; token heads have no label names.
        label2id: Not used.
        structure: What differs from the usual layers (`heads/options.py`); heads of plain classes may have that.
    Raises:
        HeadError: an option has a value that no head can have.
    """

    head_type = "ctc"
    cls_vector = "no"

    def __init__(
        self,
        model: PreTrainedModel,
        head_name: str,
        vocab_size: int | None = None,
        blank: int | None = None,
        reduction: str | None = None,
        zero_infinity: bool | None = None,
        layers: int = 1,
        activation_function: str | None = "tanh",
        dropout_prob: float | None = None,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head_name)
        said: Any = model.config
        if zero_infinity is None:
            zero_infinity = getattr(said, "ctc_zero_infinity", False)
        self.config = self.describe(
            vocab_size=vocab_size or said.vocab_size,
            blank=(getattr(said, "pad_token_id", None) or 0) if blank is None else blank,
            reduction=reduction or getattr(said, "ctc_loss_reduction", "mean"),
            zero_infinity=zero_infinity,
            layers=layers,
            activation_function=activation_function,
            dropout_prob=dropout_prob,
            structure=structure,
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
        """Predicts.

        Args:
            outputs: Of the base model; its last states are [B, frames, D].
            cls_output: Not used.
            attention_mask: Of the frames, [B, frames].
            return_dict: Return named fields instead of a tuple.
            labels: Token ids, [B, S]; those below 0 are padding.
            kwargs: Not used.
        """
        logits = self.run(outputs[0])
        loss = None if labels is None else self.loss_of(logits, attention_mask, labels)
        return returned(CausalLMOutput(loss=loss, logits=logits), return_dict)

    def loss_of(self, logits: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        """The loss of `labels` [B, S] for `logits` [B, frames, V]."""
        frames = logits.new_full((len(logits),), logits.size(1), dtype=torch.long) if mask is None else mask.sum(-1)
        chosen = labels >= 0
        with torch.backends.cudnn.flags(enabled=False):
            return functional.ctc_loss(
                functional.log_softmax(logits, -1, dtype=torch.float32).transpose(0, 1),
                labels.masked_select(chosen),
                frames,
                chosen.sum(-1),
                blank=self.config["blank"],
                reduction=self.config["reduction"],
                zero_infinity=self.config["zero_infinity"],
            )
