"""The verbs `add_..._head` of models with flexible heads: one per head type, with its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Labels = Mapping[int, str] | None


class AddHeadMethods:
    """`add_..._head` methods. All but the defaults is done by `_add_head` of the class that mixes this in.

    Arguments that all methods share:
        head_name: Name of the new head.
        overwrite_ok: Replace a head of this name.
        set_active: Activate the head.
        id2label: Names of the labels; LABEL_0, LABEL_1, ... by default.
        layers: Linear layers, a count. `activation_function` stands between them.
        use_pooler: Classify the model's pooler output instead of the state of one position.
        dropout_prob: Before each layer; None takes the model's.
    All raise:
        UnsupportedError: the model's class does not support this type of head.
        HeadError: there is a head of this name and `overwrite_ok` is False, or an argument is not valid.
    """

    def _add_head(self, head_type: str, head_name: str, overwrite_ok: bool, set_active: bool, **options: Any) -> None:
        raise NotImplementedError

    def add_classification_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 2,
        activation_function: str | None = "tanh",
        overwrite_ok: bool = False,
        multilabel: bool = False,
        id2label: Labels = None,
        use_pooler: bool = False,
        bias: bool = True,
        dropout_prob: float | None = None,
        set_active: bool = True,
    ) -> None:
        """Adds a head that predicts a label, with `multilabel` any number of them, or (num_labels=1) a number."""
        self._add_head(
            "multilabel_classification" if multilabel else "classification",
            head_name,
            overwrite_ok,
            set_active,
            num_labels=num_labels,
            layers=layers,
            activation_function=activation_function,
            id2label=id2label,
            use_pooler=use_pooler,
            bias=bias,
            dropout_prob=dropout_prob,
        )

    def add_image_classification_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 1,
        activation_function: str | None = "tanh",
        overwrite_ok: bool = False,
        multilabel: bool = False,
        id2label: Labels = None,
        use_pooler: bool = False,
        bias: bool = True,
        dropout_prob: float | None = None,
        set_active: bool = True,
    ) -> None:
        """Adds a head that predicts a label (or several, or a number) per image."""
        self._add_head(
            "image_classification",
            head_name,
            overwrite_ok,
            set_active,
            num_labels=num_labels,
            layers=layers,
            activation_function=activation_function,
            multilabel=multilabel,
            id2label=id2label,
            use_pooler=use_pooler,
            bias=bias,
            dropout_prob=dropout_prob,
        )

    def add_multiple_choice_head(
        self,
        head_name: str,
        num_choices: int = 2,
        layers: int = 2,
        activation_function: str | None = "tanh",
        overwrite_ok: bool = False,
        id2label: Labels = None,
        use_pooler: bool = False,
        dropout_prob: float | None = None,
        set_active: bool = True,
    ) -> None:
        """Adds a head that chooses among alternatives, given as inputs [B, num_choices, S]."""
        self._add_head(
            "multiple_choice",
            head_name,
            overwrite_ok,
            set_active,
            num_choices=num_choices,
            layers=layers,
            activation_function=activation_function,
            id2label=id2label,
            use_pooler=use_pooler,
            dropout_prob=dropout_prob,
        )

    def add_tagging_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 1,
        activation_function: str | None = "tanh",
        overwrite_ok: bool = False,
        id2label: Labels = None,
        dropout_prob: float | None = None,
        set_active: bool = True,
    ) -> None:
        """Adds a head that predicts a label per position."""
        self._add_head(
            "tagging",
            head_name,
            overwrite_ok,
            set_active,
            num_labels=num_labels,
            layers=layers,
            activation_function=activation_function,
            id2label=id2label,
            dropout_prob=dropout_prob,
        )

    def add_qa_head(
        self,
        head_name: str,
        num_labels: int = 2,
        layers: int = 1,
        activation_function: str | None = "tanh",
        overwrite_ok: bool = False,
        id2label: Labels = None,
        dropout_prob: float | None = None,
        set_active: bool = True,
    ) -> None:
        """Adds a head that marks where an answer starts and ends."""
        self._add_head(
            "question_answering",
            head_name,
            overwrite_ok,
            set_active,
            num_labels=num_labels,
            layers=layers,
            activation_function=activation_function,
            id2label=id2label,
            dropout_prob=dropout_prob,
        )

    def add_dependency_parsing_head(
        self,
        head_name: str,
        num_labels: int = 2,
        overwrite_ok: bool = False,
        id2label: Labels = None,
        set_active: bool = True,
    ) -> None:
        """Adds a biaffine head that predicts dependency trees; `num_labels` counts relations."""
        self._add_head(
            "dependency_parsing",
            head_name,
            overwrite_ok,
            set_active,
            num_labels=num_labels,
            id2label=id2label,
        )

    def add_masked_lm_head(
        self,
        head_name: str,
        activation_function: str | None = "gelu",
        layers: int = 2,
        layer_norm: bool = True,
        bias: bool = True,
        overwrite_ok: bool = False,
        set_active: bool = True,
    ) -> None:
        """Adds a head that predicts masked tokens."""
        self._add_head(
            "masked_lm",
            head_name,
            overwrite_ok,
            set_active,
            layers=layers,
            activation_function=activation_function,
            layer_norm=layer_norm,
            bias=bias,
        )

    def add_causal_lm_head(
        self,
        head_name: str,
        activation_function: str | None = "gelu",
        layers: int = 2,
        layer_norm: bool = True,
        bias: bool = True,
        overwrite_ok: bool = False,
        set_active: bool = True,
    ) -> None:
        """Adds a head that predicts the next token."""
        self._add_head(
            "causal_lm",
            head_name,
            overwrite_ok,
            set_active,
            layers=layers,
            activation_function=activation_function,
            layer_norm=layer_norm,
            bias=bias,
        )

    def add_seq2seq_lm_head(
        self,
        head_name: str,
        layers: int = 1,
        overwrite_ok: bool = False,
        set_active: bool = True,
    ) -> None:
        """Adds a head that predicts the decoder's tokens."""
        self._add_head("seq2seq_lm", head_name, overwrite_ok, set_active, layers=layers)
