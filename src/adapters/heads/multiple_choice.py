"""A head that scores alternatives, each of which is a row of its own in the base model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import MultipleChoiceModelOutput
from transformers.utils.generic import ModelOutput

from adapters.heads.base import LabelledHead, averaged
from adapters.heads.classification import classification_vector


class MultipleChoiceHead(LabelledHead):
    """Chooses among alternatives given as inputs [B, choices, S], which the model flattens to rows.

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        num_choices: Alternatives per example, a count.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        id2label: Names of the alternatives.
        use_pooler: Take the model's pooler output instead of the state of its first position.
        dropout_prob: Before each layer; None takes the model's.
        label2id: `id2label` the other way round, as stored.
        structure: What differs from the usual layers (`heads/options.py`); heads of plain classes may have that.
    Raises:
        HeadError: an option has a value that no head can have.
    """

    head_type = "multiple_choice"
    cls_vector = "required"
    output_class = MultipleChoiceModelOutput

    def __init__(
        self,
        model: PreTrainedModel,
        head_name: str,
        num_choices: int = 2,
        layers: int = 2,
        activation_function: str | None = "tanh",
        id2label: Mapping[int, str] | None = None,
        use_pooler: bool = False,
        dropout_prob: float | None = None,
        label2id: Mapping[str, int] | None = None,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head_name)
        self.config = self.describe(
            id2label,
            label2id,
            num_choices=num_choices,
            layers=layers,
            activation_function=activation_function,
            use_pooler=use_pooler,
            dropout_prob=dropout_prob,
            structure=structure,
        )
        self.build(model)

    def predict(self, outputs: ModelOutput, cls_output: Tensor | None) -> Tensor:
        scores = self.run(classification_vector(self, outputs, cls_output))
        return scores.view(-1, self.config["num_choices"])

    def loss_of(self, logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        return averaged(functional.cross_entropy, logits, labels.view(-1), count)
