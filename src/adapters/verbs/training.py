"""What trains? Freezing, and what a fusion adds to the loss."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from adapters.runtime import freezing, merging
from adapters.verbs.activation import ActivationVerbs

logger = logging.getLogger(__name__)


class TrainingVerbs(ActivationVerbs):
    """Freezing, and what a fusion adds to the loss."""

    def train_adapter(self, adapter_setup: Any, train_embeddings: bool = False) -> None:
        """Freeze the base model, let the adapters of `adapter_setup` train, and activate it.

        Args:
            adapter_setup: An adapter name or a block.
            train_embeddings: Let the input embeddings train too.
        """
        block = self._engine.parse(adapter_setup)
        names = block.flatten() if block is not None else set()
        self._take_out_merged(names)
        self._train_mode()
        freezing.train_adapters(self._engine, names)
        self._train_embeddings(train_embeddings)
        self.model_frozen = True
        self.set_active_adapters(adapter_setup)

    def train_adapter_fusion(self, adapter_setup: Any, unfreeze_adapters: bool = False) -> None:
        """Freeze base model and adapters, let the fusion layers of `adapter_setup` train, and activate it.

        Args:
            adapter_setup: A `Fuse` block, or a block that holds some.
            unfreeze_adapters: Let the fused adapters train too.
        """
        block = self._engine.parse(adapter_setup)
        fusions = self._engine.fusions_of(block)
        adapters = block.flatten() if unfreeze_adapters and block is not None else set()
        self._take_out_merged(adapters)
        self._train_mode()
        freezing.train_fusions(self._engine, fusions, adapters)
        self._train_embeddings(False)
        self.model_frozen = True
        self.set_active_adapters(adapter_setup)

    def _take_out_merged(self, names: Iterable[str]) -> None:
        """Take an adapter that is to train out of the base weights: what is merged cannot train."""
        for name in names:
            if name in self._engine.merged:
                logger.warning("Adapter %r is taken out of the base weights, since what is merged cannot train.", name)
                merging.unmerge(self._engine, name)

    def _train_mode(self) -> None:
        cast(nn.Module, self).train()

    def _train_embeddings(self, train: bool) -> None:
        model = cast(PreTrainedModel, self)
        model.get_input_embeddings().requires_grad_(train)
        for module in self._output_embedding_modules():
            module.requires_grad_(train)

    def freeze_model(self, freeze: bool = True) -> None:
        """Freeze or unfreeze the base model; adapters stay as they are."""
        freezing.freeze_base(self._engine, freeze)
        self.model_frozen = freeze

    def get_fusion_regularization_loss(self) -> Tensor | float:
        """0.01 * sum of ||I - W_v||^2 over the fusion layers that train."""
        layers: list[Any] = [part.module for parts in self._engine.fusions.values() for part in parts]
        return sum((layer.regularization_loss() for layer in layers), 0.0)
