"""What all verbs need of a model: its engine, and its output embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import cast

from torch import nn
from transformers import PreTrainedModel

from adapters.runtime.adapters_config import ModelAdaptersConfig
from adapters.runtime.engine import Engine


class Verbs:
    """Base of all groups of verbs."""

    _engine: Engine
    model_frozen: bool

    @property
    def adapters_config(self) -> ModelAdaptersConfig:
        """Names and configs of all adapters and fusions, and the active set-up."""
        return self._engine.config

    def _output_embedding_modules(self) -> Iterable[nn.Module]:
        """Output embedding layers of this model."""
        with contextlib.suppress(AttributeError, NotImplementedError):
            module = cast(PreTrainedModel, self).get_output_embeddings()
            if module is not None:
                yield module
