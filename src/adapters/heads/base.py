"""What is a prediction head? Indexed modules on top of a base model, and a dict that can rebuild them.

Concrete heads live beside this file, one task per file; `mixin.py` gives models their heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils.generic import ModelOutput

from adapters.errors import HeadError
from adapters.heads.options import check_options, label_map
from adapters.heads.outputs import MultiHeadOutput as MultiHeadOutput
from adapters.heads.outputs import returned
from adapters.heads.pooling import text_config

IGNORE = -100
"""Label of positions that do not count in a loss."""

if TYPE_CHECKING:

    class _Modules(nn.Module):
        """`nn.Sequential` as heads use it: its type of `forward` would not let them have their own."""

        def __getitem__(self, index: int) -> nn.Module: ...
        def __setitem__(self, index: int, module: nn.Module) -> None: ...
        def __len__(self) -> int: ...
else:
    _Modules = nn.Sequential

DROPOUT_FIELDS = (
    "classifier_dropout",
    "classifier_dropout_prob",
    "seq_classif_dropout",
    "hidden_dropout_prob",
    "dropout",
    "resid_pdrop",
)
"""Fields of model configs that hold the dropout of a head, the most specific first."""


class PredictionHead(_Modules):
    """Modules that turn the output of a base model into predictions.

    `heads[name]` of a model is such a module. Its children are numbered, so that tensors are called
    `heads.<name>.<index>.weight`. Custom heads derive from this class, fill `config`, call `build` and
    implement `forward(outputs, cls_output=None, attention_mask=None, return_dict=False, **kwargs)`; there
    `super().forward(x)` runs the modules in order.

    Args:
        name: Name of the head in its model.
    """

    head_type: ClassVar[str] = ""
    """Identifier in stored configs."""
    cls_vector: ClassVar[str] = "optional"
    """Whether `forward` needs `cls_output`: "required", "optional" (given where it exists) or "no"."""

    config: dict[str, Any]

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.config = {}

    def describe(
        self, id2label: Mapping[int, str] | None = None, label2id: Mapping[str, int] | None = None, **options: Any
    ) -> dict[str, Any]:
        """The config of a head of this class, from checked options and either map between labels and ids.

        Raises:
            HeadError: an option has a value that no head can have.
        """
        check_options(self.name, options)
        count = options.get("num_labels", options.get("num_choices"))
        labels = None if count is None else label_map(id2label, label2id, count)
        plain = {name: v.item() if isinstance(v, np.generic) else v for name, v in options.items()}
        if plain.get("structure", True) is None:
            del plain["structure"]
        return {"head_type": self.head_type, **plain, "label2id": labels}

    def build(self, model: PreTrainedModel) -> None:
        """Creates the modules that `config` describes, initialised like the model's own.

            (Dropout, Linear(D, D), activation, [LayerNorm]) x (layers - 1), Dropout, Linear(D, L)

        Args:
            model: The model the head is for; width, dropout, device, dtype and mode are taken from it.
        Raises:
            HeadError: the config lacks an option, or one has a value that no head can have.
        """
        check_options(self.name, self.config)
        structure = self.config.get("structure") or {}
        width = structure.get("input_size") or hidden_size(model)
        inner = structure.get("inner_size") or width_of(model.config) or width
        outputs = 1 if "num_choices" in self.config else self.config.get("vocab_size") or self._option("num_labels")
        dropout = dropout_probability(self.config, model)
        modules: list[nn.Module] = []
        for _ in range(self._option("layers") - 1):
            modules += [nn.Dropout(dropout), nn.Linear(width, inner), *self._activation()]
            if structure.get("layer_norm"):
                modules.append(nn.LayerNorm(inner, eps=structure.get("norm_eps") or norm_eps(model.config)))
            width = inner
        modules += [nn.Dropout(dropout), nn.Linear(width, outputs, bias=self.config.get("bias", True))]
        for index, module in enumerate(modules):
            self.add_module(str(index), module)
        self._adjust(model)

    def _option(self, name: str) -> Any:
        if name not in self.config:
            raise HeadError(f"The config of head {self.name!r} has no {name!r}, which is needed to build its modules.")
        return self.config[name]

    def _activation(self) -> list[nn.Module]:
        name = self._option("activation_function")
        return [] if name is None else [ACT2FN[name]]

    def _adjust(self, model: PreTrainedModel) -> None:
        """Initialises the modules and gives them device, dtype and mode of the model; on `meta` they stay there."""
        self.apply(model._init_weights)
        self._place(model)

    def _place(self, model: PreTrainedModel) -> None:
        """Takes the device, dtype and mode of `model`; what has no values yet (on `meta`) is not moved."""
        empty = any(parameter.is_meta for parameter in self.parameters())
        self.to(device=None if empty else model.device, dtype=model.dtype)
        self.train(model.training)

    def get_output_embeddings(self) -> nn.Linear | None:
        """The linear layer onto the vocabulary; None in heads that do not predict tokens."""
        return None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the linear layer onto the vocabulary.

        Raises:
            HeadError: the head does not predict tokens.
        """
        raise HeadError(f"Head {self.name!r} ({self.head_type}) has no output embeddings to replace.")

    @property
    def multilabel(self) -> bool:
        """Whether a row may have several labels."""
        return bool(self.config.get("multilabel"))

    def get_label_names(self) -> list[str]:
        """Keyword arguments of the model's forward that hold this head's labels."""
        return ["labels"]

    def run(self, states: Tensor) -> Tensor:
        """Runs the modules in order."""
        for module in self.children():
            states = module(states)
        return states


class LabelledHead(PredictionHead):
    """A head whose logits are compared with `labels`. Subclasses have `predict`, `loss_of` and `output_class`."""

    output_class: ClassVar[type[ModelOutput]]

    def predict(self, outputs: ModelOutput, cls_output: Tensor | None) -> Tensor:
        """The logits, from the output of the base model; here from its last states alone."""
        return self.run(outputs[0])

    def loss_of(self, logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        """How far `logits` are from `labels`, by `averaged`."""
        raise NotImplementedError

    def output_class_for(self, outputs: ModelOutput) -> type[ModelOutput]:
        """Class of the head's output, by that of the base model."""
        return self.output_class

    def forward(
        self,
        outputs: ModelOutput,
        cls_output: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = False,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Predicts.

        Args:
            outputs: Of the base model.
            cls_output: The vector of each row, [B, D], for heads that classify rows.
            attention_mask: Not used.
            return_dict: Return named fields instead of a tuple.
            labels: What should be predicted; without them there is no loss.
            num_items_in_batch: Labels in all batches of one optimizer step, by which the loss is divided then.
            kwargs: Not used.
        """
        logits = self.predict(outputs, cls_output)
        loss = None if labels is None else self.loss_of(logits, labels, num_items_in_batch)
        return returned(self.output_class_for(outputs)(loss=loss, logits=logits), return_dict)


class PositionHead(PredictionHead):
    """A head that scores each position, with the options that such heads have.

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        num_labels: Scores per position, a count.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        id2label: Names of the scores.
        dropout_prob: Before each layer; None takes the model's.
        label2id: `id2label` the other way round, as stored.
        structure: What differs from the usual layers (`heads/options.py`); heads of plain classes may have that.
    Raises:
        HeadError: an option has a value that no head can have.
    """

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
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head_name)
        self.config = self.describe(
            id2label,
            label2id,
            num_labels=num_labels,
            layers=layers,
            activation_function=activation_function,
            dropout_prob=dropout_prob,
            structure=structure,
        )
        self.build(model)


def dropout_probability(config: Mapping[str, Any], model: PreTrainedModel) -> float:
    """Dropout of a head: its own, else that of the model's classifiers, else of its hidden states, else 0."""
    own = config.get("dropout_prob")
    values = [own, *(getattr(model.config, field, None) for field in DROPOUT_FIELDS)]
    return float(next((value for value in values if isinstance(value, int | float)), 0.0))


def hidden_size(model: PreTrainedModel) -> int:
    """Width of the base model's output, as its config says it.

    Raises:
        HeadError: the config does not say it.
    """
    if (width := width_of(model.config)) is None:
        raise HeadError(
            f"The config of {type(model).__name__} does not say how wide its output is. "
            "Give the head structure={'input_size': ...}."
        )
    return width


def width_of(config: Any) -> int | None:
    """Width of a base model's output: one width for all layers, or that of the last stage; None if it is not said."""
    for part in (config, text_config(config)):
        for name in ("hidden_size", "d_model"):
            if isinstance(size := getattr(part, name, None), int):
                return size
        for name in ("hidden_sizes", "embed_dims"):
            if isinstance(sizes := getattr(part, name, None), list | tuple) and sizes:
                return int(sizes[-1])
    return None


def norm_eps(config: PreTrainedConfig) -> float:
    """The epsilon of the norms in heads."""
    return float(getattr(config, "layer_norm_eps", None) or 1e-12)


def averaged(
    loss: Callable[..., Tensor], predicted: Tensor, wanted: Tensor, count: Tensor | int | None = None, **options: Any
) -> Tensor:
    """A loss of `torch.nn.functional` as mean, or as sum over this batch divided by `count`.

    Args:
        loss: The function.
        predicted, wanted: Its arguments.
        count: Labels in all batches of one optimizer step (`num_items_in_batch` of the HF Trainer).
        options: Further arguments of the function.
    """
    if count is None:
        return loss(predicted, wanted, **options)
    total = loss(predicted, wanted, reduction="sum", **options)
    return total / (count.to(total.device) if isinstance(count, Tensor) else count)


def pad_labels(labels: Tensor, length: int) -> Tensor:
    """Fills labels on the left up to the length of the sequence, which prompt tuning makes longer.

    Raises:
        HeadError: there are more labels than positions.
    """
    extra = length - labels.size(1)
    if extra < 0:
        raise HeadError(
            f"There are labels for {labels.size(1)} positions, but the model's output has {length}. "
            "Give one label per input position."
        )
    return nn.functional.pad(labels, (extra, 0), value=IGNORE)
