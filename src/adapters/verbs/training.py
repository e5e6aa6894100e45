"""What trains?"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from adapters.errors import ConfigError, UnsupportedError
from adapters.runtime import freezing, merging
from adapters.verbs.activation import ActivationVerbs

logger = logging.getLogger(__name__)


class TrainingVerbs(ActivationVerbs):
    """Freezing."""

    def train_adapter(self, adapter_setup: Any, train_embeddings: bool = False) -> None:
        """Freeze the base model, let the adapters of `adapter_setup` train, and activate it.

        Args:
            adapter_setup: An adapter name or a block.
            train_embeddings: Let the input embeddings train too.
        Raises:
            ConfigError: `train_embeddings` is neither True nor False.
        """
        if not isinstance(train_embeddings, bool):
            raise ConfigError(
                f"train_embeddings is {train_embeddings!r}. Allowed: True, False. The config of an adapter is given to "
                "add_adapter."
            )
        block = self._engine.parse(adapter_setup)
        names = block.flatten() if block is not None else set()
        self._take_out_merged(names)
        self._train_mode()
        freezing.train_adapters(self._engine, names)
        self._train_embeddings(train_embeddings)
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
        self._train_input_embeddings(train)
        for module in self._output_embedding_modules():
            module.requires_grad_(train)

    def _train_input_embeddings(self, train: bool) -> None:
        model = cast(PreTrainedModel, self)
        try:
            for (
                parameter
            ) in model.get_input_embeddings()._parameters.values():  # adapters below it train as they are told
                if parameter is not None:
                    parameter.requires_grad_(train)
        except NotImplementedError:  # images and sounds have none, and of two towers none is the one
            if train:
                raise UnsupportedError(f"train_embeddings: {type(model).__name__} has no input embeddings.") from None

    def freeze_embeddings(self, freeze: bool = True) -> None:
        """Freeze or unfreeze the input embeddings. Raises UnsupportedError if there are none to unfreeze."""
        self._train_input_embeddings(not freeze)

    def freeze_model(self, freeze: bool = True) -> None:
        """Freeze or unfreeze the base model; adapters stay as they are."""
        freezing.freeze_base(self._engine, freeze)
        self.model_frozen = freeze
