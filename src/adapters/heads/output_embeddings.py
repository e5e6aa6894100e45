"""Which layers lead onto the vocabulary, and which of them share the input embeddings' weight?"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from adapters.composition.blocks import BatchSplit, MultiTask, PerRow
from adapters.errors import HeadError
from adapters.heads.base import PredictionHead
from adapters.heads.language_modeling import LanguageModelingHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Model = PreTrainedModel
else:
    Model = object

Heads = str | Sequence[str] | BatchSplit | MultiTask | PerRow | None
"""What can run: one head, several, one per part of the batch, per task or per row, or none."""


class OutputEmbeddingsMixin(Model):
    """Output embeddings of a model with flexible heads: those of its heads that predict tokens."""

    heads: nn.ModuleDict
    _active_head: Heads = None

    def _get_head(self, name: str) -> PredictionHead:
        raise NotImplementedError

    def _heads_changed(self) -> None:
        ties = self.get_expanded_tied_weights_keys()
        others = {k: v for k, v in self.all_tied_weights_keys.items() if not k.startswith("heads.")}
        self.all_tied_weights_keys = {**others, **ties}
        changed = getattr(self, "_on_heads_changed", None)
        if changed is not None:
            changed()

    def _output_embedding_modules(self) -> list[nn.Linear]:
        """The last layers of all heads that predict tokens, each once."""
        names = self.heads if "heads" in self._modules else ()
        modules = [self._get_head(name).get_output_embeddings() for name in names]
        return [module for module in modules if module is not None]

    def get_output_embeddings(self) -> Any:
        """The layer onto the vocabulary of the active head; a list of them if several heads have one."""
        names = head_names(self._active_head) if self._active_head is not None else []
        modules = [self._get_head(name).get_output_embeddings() for name in names]
        found = [module for module in modules if module is not None]
        if len(found) > 1:
            return found
        return found[0] if found else None

    def set_output_embeddings(self, new_embeddings: nn.Linear | Sequence[nn.Linear]) -> None:
        """Replaces the layer onto the vocabulary of the active head, or, given a list, of the active heads.

        Args:
            new_embeddings: A linear layer, or one per active head that predicts tokens.
        Raises:
            HeadError: not as many layers are given as active heads predict tokens.
        """
        names = head_names(self._active_head) if self._active_head is not None else []
        heads = [self._get_head(name) for name in names]
        heads = [head for head in heads if head.get_output_embeddings() is not None]
        layers = new_embeddings if isinstance(new_embeddings, list | tuple) else [new_embeddings]
        if len(layers) != len(heads):
            raise HeadError(f"{len(layers)} output embeddings were given for {len(heads)} active token heads.")
        for head, layer in zip(heads, layers, strict=True):
            head.set_output_embeddings(layer)
        self._heads_changed()

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resizes the input embeddings and the last layer of every head that predicts their tokens, active or not.

        Args:
            new_num_tokens, pad_to_multiple_of, mean_resizing: As in transformers.
        Returns:
            The input embeddings.
        """
        before = len(self.get_input_embeddings().weight)  # type: ignore[arg-type]
        found = [self._get_head(name) for name in self.heads]
        token_heads = [h for h in found if (o := h.get_output_embeddings()) is not None and o.out_features == before]
        active, self._active_head = self._active_head, None
        try:
            embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        finally:
            self._active_head = active
        for head in token_heads:
            layer, size = head.get_output_embeddings(), len(embeddings.weight)
            assert layer is not None
            if len(layer.weight) != size:
                trained = layer.weight.requires_grad
                layer = self._get_resized_lm_head(layer, size, mean_resizing=mean_resizing).requires_grad_(trained)
            layer.out_features = size
            head.set_output_embeddings(layer)
        self._heads_changed()
        return embeddings

    def _tied_heads(self) -> dict[str, str]:
        heads = self._modules.get("heads")
        tied = {
            name: f"heads.{name}.{len(head) - 1}.weight"
            for name, head in (heads.items() if isinstance(heads, nn.ModuleDict) else ())
            if isinstance(head, LanguageModelingHead) and head.tied
        }
        if not tied:
            return {}
        embeddings = self.get_input_embeddings()
        path = next(name for name, module in self.named_modules() if module is embeddings)
        return dict.fromkeys(tied.values(), f"{path}.weight")

    @property
    def _tied_weights_keys(self) -> dict[str, str]:  # type: ignore[override]
        """Patterns of the tied tensors of this model's heads -> name of what they are tied to."""
        return {re.escape(key): source for key, source in self._tied_heads().items()}

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Names of tied tensors -> names of what they are tied to.

        Args:
            all_submodels: Also look into models inside this one.
        """
        if all_submodels:
            return dict(super().get_expanded_tied_weights_keys(all_submodels=True))
        return self._tied_heads()


def head_names(heads: Heads | Collection[str]) -> list[str]:
    """Names in what can be active.

    Raises:
        HeadError: it is nothing that can be.
    """
    if heads is None:
        return []
    if not isinstance(heads, Collection):
        raise HeadError(f"{heads!r} names no heads. Allowed: a name, a list of names, BatchSplit, MultiTask or None.")
    return [heads] if isinstance(heads, str) else [str(name) for name in heads]
