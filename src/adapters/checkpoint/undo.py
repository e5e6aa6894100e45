"""How does a call that fails leave a model as it was, when it adds and replaces several things one after the other?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from adapters.runtime import merging
from adapters.runtime.engine import Engine
from adapters.sharding import assign, whole


class Before:
    """A model as it was when this context was entered: an error inside of it brings that back.

    Adapters, what blocks own, and heads that were added are removed, heads that were replaced return to their places,
    and what was active is active again. Tensors that the call writes into are brought back if they were given to `keep`
    before.

    Args:
        model: The model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._tensors: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Before:
        engine: Engine = self.model._engine
        config = self.model.config
        self._adapters, self._merged = set(engine.parts), dict(engine.merged)
        self._owned = {noun: set(owned) for noun, owned in engine.owned.items()}
        self._setup = engine.config.active_setup, engine.config.skip_layers
        self._labels = getattr(config, "id2label", None), getattr(config, "label2id", None)
        if "heads" in self.model._modules:
            self._heads = dict(self.model.heads._modules)
            self._head_configs, self._active_head = dict(config.prediction_heads), self.model._active_head
        return self

    def keep(self, tensors: Iterable[Tensor]) -> None:
        """Remember the values of some tensors."""
        self._tensors += [(tensor, whole(tensor).detach().clone()) for tensor in tensors if not tensor.is_meta]

    def __exit__(self, kind: Any, *args: Any) -> None:
        if kind is None:
            return
        engine: Engine = self.model._engine
        for noun, owned in engine.owned.items():
            for name in set(owned) - self._owned[noun]:
                owned.delete(name)
        for name in set(engine.parts) - self._adapters:
            engine.delete(name)
        with torch.no_grad():
            for tensor, values in self._tensors:
                assign(tensor, values)
        if list(engine.merged) != list(self._merged):
            merging.unmerge(engine)
            for name, merged in self._merged.items():
                merging.merge(engine, name, merged.weight)
        if (engine.config.active_setup, engine.config.skip_layers) != self._setup:
            engine.activate(*self._setup)
        if "heads" in self.model._modules:
            self._bring_heads_back()
        config = self.model.config
        if (getattr(config, "id2label", None), getattr(config, "label2id", None)) != self._labels:
            config.id2label, config.label2id = self._labels

    def _bring_heads_back(self) -> None:
        heads, configs = self.model.heads._modules, self.model.config.prediction_heads
        if list(heads.items()) == list(self._heads.items()) and self.model._active_head == self._active_head:
            return
        for current, before in ((heads, self._heads), (configs, self._head_configs)):
            current.clear()
            current.update(before)
        self.model._active_head = self._active_head
        self.model._heads_changed()
