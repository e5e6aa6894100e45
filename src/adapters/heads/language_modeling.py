"""Heads that predict tokens: masked, causal and sequence-to-sequence language modelling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput, Seq2SeqLMOutput
from transformers.utils.generic import ModelOutput

from adapters.heads.base import IGNORE, LabelledHead, averaged, hidden_size, norm_eps, pad_labels
from adapters.heads.options import check_options
from adapters.heads.pooling import text_config


class LanguageModelingHead(LabelledHead):
    """Linear layers that end in one onto the vocabulary, whose weight may be the input embeddings'.

        (Linear(D, E), [activation], [LayerNorm]) x (layers - 1), Linear(E, V)

    Subclasses say which output they have. The last linear layer is what `get_output_embeddings` returns;
    the runtime hooks the inverse of invertible adapters onto its input.

    Args:
        name: Name of the head in its model.
    """

    cls_vector = "no"

    tied = False
    """Whether the last layer's weight is that of the input embeddings."""

    def build(self, model: PreTrainedModel) -> None:
        """Creates the modules that `config` describes; the last weight is tied if the model ties its own."""
        check_options(self.name, self.config)
        width = hidden_size(model)
        structure = self.config.get("structure") or {}
        inner = self.config.get("embedding_size") or getattr(model.config, "embedding_size", None) or width
        modules: list[nn.Module] = []
        for layer in range(self._option("layers") - 1):
            modules += [nn.Linear(inner if layer else width, inner), *self._activation()]
            if self.config["layer_norm"]:
                modules.append(nn.LayerNorm(inner, eps=structure.get("norm_eps") or norm_eps(model.config)))
        modules.append(nn.Linear(inner, self.config["vocab_size"], bias=self.config["bias"]))
        for index, module in enumerate(modules):
            self.add_module(str(index), module)
        self._adjust(model)
        self._tie(model)

    def _tie(self, model: PreTrainedModel) -> None:
        embeddings = model.get_input_embeddings()
        weight = getattr(embeddings, "weight", None)
        decoder = self.get_output_embeddings()
        if ties_embeddings(model.config) and weight is not None and weight.shape == decoder.weight.shape:
            decoder.weight = weight
            self.tied = True

    def untie(self) -> None:
        """Gives the last layer a weight of its own, equal to the embeddings' until it is changed."""
        if self.tied:
            decoder = self.get_output_embeddings()
            decoder.weight = nn.Parameter(decoder.weight.detach().clone())
            self.tied = False

    def get_output_embeddings(self) -> nn.Linear:
        """The linear layer onto the vocabulary."""
        decoder = self[-1]
        assert isinstance(decoder, nn.Linear)
        return decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the linear layer onto the vocabulary."""
        self[-1] = new_embeddings
        self.config["vocab_size"] = new_embeddings.out_features

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A stored weight that is not the embeddings' unties first: loading must not write into those."""
        stored = state_dict.get(f"{prefix}{len(self) - 1}.weight")
        if self.tied and stored is not None:
            weight = self.get_output_embeddings().weight
            if weight.shape != stored.shape or not torch.equal(weight, stored.to(weight)):
                self.untie()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def predict(self, outputs: ModelOutput, cls_output: Tensor | None) -> Tensor:
        structure = self.config.get("structure") or {}
        logits = self.run(outputs[0])
        if (scale := structure.get("scale")) is not None:
            logits = logits * scale
        cap = structure.get("cap")
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def loss_of(self, logits: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        return token_loss(logits, pad_labels(labels, logits.size(1)), self.config["shift_labels"], count)


class MaskedLMHead(LanguageModelingHead):
    """Predicts the tokens at masked positions.

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        vocab_size: Tokens, a count; None takes the model's.
        embedding_size: Width E before the last layer; None takes that of the model's embeddings.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        layer_norm: Whether each layer but the last is normalised.
        bias: Whether the last layer has one.
        shift_labels: Whether labels are those of the next position.
        id2label: Not used; token heads have no label names.
        label2id: Not used.
        structure: What differs from the usual layers (`heads/options.py`); heads of plain classes may have that.
    Raises:
        HeadError: an option has a value that no head can have.
    """

    head_type = "masked_lm"
    output_class = MaskedLMOutput

    def __init__(
        self,
        model: PreTrainedModel,
        head_name: str,
        vocab_size: int | None = None,
        embedding_size: int | None = None,
        layers: int = 2,
        activation_function: str | None = "gelu",
        layer_norm: bool = True,
        bias: bool = True,
        shift_labels: bool = False,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head_name)
        self.config = self.describe(
            vocab_size=vocab_size or text_config(model.config).vocab_size,
            embedding_size=embedding_size or getattr(model.config, "embedding_size", None) or hidden_size(model),
            layers=layers,
            activation_function=activation_function,
            layer_norm=layer_norm,
            bias=bias,
            shift_labels=shift_labels,
            structure=structure,
        )
        self.build(model)


class CausalLMHead(LanguageModelingHead):
    """Predicts the next token at each position.

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        vocab_size: Tokens, a count; None takes the model's.
        embedding_size: Width E before the last layer; None takes that of the model's embeddings.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        layer_norm: Whether each layer but the last is normalised.
        bias: Whether the last layer has one.
        shift_labels: Whether labels are those of the same position, to be shifted by one in the loss.
        id2label: Not used; token heads have no label names.
        dropout_prob: Kept for files; this head has no dropout.
        label2id: Not used.
        structure: What differs from the usual layers (`heads/options.py`); heads of plain classes may have that.
    Raises:
        HeadError: an option has a value that no head can have.
    """

    head_type = "causal_lm"
    output_class = CausalLMOutputWithPast

    def __init__(
        self,
        model: PreTrainedModel,
        head_name: str,
        vocab_size: int | None = None,
        embedding_size: int | None = None,
        layers: int = 1,
        activation_function: str | None = None,
        layer_norm: bool = False,
        bias: bool = False,
        shift_labels: bool = True,
        id2label: Mapping[int, str] | None = None,
        dropout_prob: float | None = None,
        label2id: Mapping[str, int] | None = None,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head_name)
        self.config = self.describe(
            vocab_size=vocab_size or text_config(model.config).vocab_size,
            embedding_size=embedding_size or getattr(model.config, "embedding_size", None) or hidden_size(model),
            layers=layers,
            activation_function=activation_function,
            layer_norm=layer_norm,
            bias=bias,
            shift_labels=shift_labels,
            dropout_prob=dropout_prob,
            structure=structure,
        )
        self.build(model)


class Seq2SeqLMHead(LanguageModelingHead):
    """Predicts the tokens of the decoder of an encoder-decoder model.

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        vocab_size: Tokens, a count; None takes the model's.
        layers: Linear layers, a count.
        activation_function: Between the layers, a transformers name; None for none.
        layer_norm: Whether each layer but the last is normalised.
        bias: Whether the last layer has one.
        shift_labels: Whether labels are those of the next position.
        id2label: Not used; token heads have no label names.
        label2id: Not used.
        structure: What differs from the usual layers (`heads/options.py`); heads of plain classes may have that.
    Raises:
        HeadError: an option has a value that no head can have.
    """

    head_type = "seq2seq_lm"
    output_class = Seq2SeqLMOutput

    def __init__(
        self,
        model: PreTrainedModel,
        head_name: str,
        vocab_size: int | None = None,
        layers: int = 1,
        activation_function: str | None = None,
        layer_norm: bool = False,
        bias: bool = False,
        shift_labels: bool = False,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        structure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head_name)
        self.config = self.describe(
            vocab_size=vocab_size or text_config(model.config).vocab_size,
            layers=layers,
            activation_function=activation_function,
            layer_norm=layer_norm,
            bias=bias,
            shift_labels=shift_labels,
            structure=structure,
        )
        self.build(model)


def ties_embeddings(config: PreTrainedConfig) -> bool:
    """Whether output embeddings of this model are its input embeddings.

    transformers 5 sets `tie_word_embeddings` for every T5 and mT5, whether its checkpoint was trained so or
    not. What the checkpoint says is kept in `scale_decoder_outputs`; for mT5 by `AutoAdapterModel`.
    """
    if config.model_type in ("t5", "mt5"):
        return scales_decoder(config)
    return bool(getattr(config, "tie_word_embeddings", False))


def scales_decoder(config: PreTrainedConfig) -> bool:
    """Whether decoder outputs are multiplied by d_model ** -0.5 before heads that read single positions."""
    return bool(getattr(config, "scale_decoder_outputs", False))


def token_loss(logits: Tensor, labels: Tensor, shift: bool, count: Tensor | int | None = None) -> Tensor:
    """Cross entropy over tokens in float32; `shift` compares each position with the label of the next one."""
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    rows = logits.reshape(-1, logits.size(-1)).float()
    return averaged(functional.cross_entropy, rows, labels.reshape(-1), count, ignore_index=IGNORE)
