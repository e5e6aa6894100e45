"""Which heads does a model have, and which of them are active? The verbs of models with flexible heads."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from torch import nn

from adapters.composition.blocks import Child, parse_heads_from_composition
from adapters.errors import HeadError, UnsupportedError, choices
from adapters.heads.adding import AddHeadMethods
from adapters.heads.averaging import average_heads, head_shares
from adapters.heads.base import PredictionHead
from adapters.heads.output_embeddings import Heads, head_names
from adapters.heads.registry import HEADS, HeadFactory, check_factory, find_factory
from adapters.heads.running import RunHeadsMixin, as_heads

logger = logging.getLogger(__name__)

MULTILABEL: Final = "multi_label_classification"
"""The `problem_type` by which the HF Trainer knows that smoothing labels makes no sense."""


class FlexibleHeadsMixin(AddHeadMethods, RunHeadsMixin):
    """Named prediction heads that can be added, removed, saved and switched, on one base model."""

    head_types: ClassVar[tuple[str, ...]] = ()
    """Built-in head types that the model supports."""

    custom_heads: dict[str, HeadFactory]
    _trained_heads: frozenset[str] | None = None
    """The heads that train since `train_adapter` was called: those that come later do not. None before."""

    def _init_heads(self) -> None:
        """Sets up `heads`, with those that the model's config describes."""
        stored = getattr(self.config, "prediction_heads", None) or {}
        self.config.prediction_heads = {}
        self.custom_heads = {}
        self.heads = nn.ModuleDict()
        self._active_head = None
        for name, config in stored.items():
            self.add_prediction_head_from_config(name, config)

    # Adding and removing

    def _add_head(
        self, head_type: str, head_name: str, overwrite_ok: bool, set_active: bool, options: Mapping[str, Any]
    ) -> None:
        self._check_new(head_name, overwrite_ok)
        self.add_prediction_head(self._make_head(head_type, head_name, options), overwrite_ok, set_active)

    def _make_head(self, head_type: str, head_name: str, options: Mapping[str, Any]) -> PredictionHead:
        """A new head for this model, which does not have it yet."""
        if head_type in HEADS and head_type not in self.head_types:
            known = f"It supports: {', '.join(self.head_types)}."
            none = (
                "Its base model is for none of the tasks that heads are for; adapters work without head, and "
                "add_custom_head takes heads of your own."
            )
            raise UnsupportedError(
                f"{type(self).__name__} does not support head type {head_type!r}. {known if self.head_types else none}"
            )
        head = find_factory(head_type, self.custom_heads)(self, head_name, **options)
        if not isinstance(head, PredictionHead):
            raise HeadError(
                f"What is registered as {head_type!r} made a {type(head).__name__}. Allowed: a PredictionHead."
            )
        head.config = {"head_type": head_type, **(head.config or options)}
        return head

    def add_custom_head(
        self,
        head_type: str,
        head_name: str,
        overwrite_ok: bool = False,
        set_active: bool = True,
        **kwargs: Any,
    ) -> None:
        """Adds a head of a type that was registered with `register_custom_head`.

        Args:
            head_type: The registered identifier.
            head_name: Name of the new head.
            overwrite_ok: Replace a head of this name.
            set_active: Activate the head.
            kwargs: Handed to the registered class or function; they are stored with the head.
        Raises:
            UnknownHeadType: nothing is registered under `head_type` (an AttributeError).
            HeadError: there is a head of this name.
        """
        self._add_head(head_type, head_name, overwrite_ok, set_active, kwargs)

    def register_custom_head(self, identifier: str, head: HeadFactory) -> None:
        """Makes a head type known to this model; `adapters.heads.register_custom_head` tells all models.

        Args:
            identifier: Its `head_type`.
            head: A `PredictionHead` class or function, called as head(model, head_name, **config).
        Raises:
            HeadError: `identifier` is not a name, or `head` cannot be called.
        """
        check_factory(identifier, head)
        self.custom_heads[identifier] = head

    def add_prediction_head_from_config(
        self, head_name: str, config: Mapping[str, Any], overwrite_ok: bool = False, set_active: bool = True
    ) -> None:
        """Adds a head that a stored config describes; its weights are new.

        Args:
            head_name: Name of the new head.
            config: As in `head.config`; it is not changed.
            overwrite_ok: Replace a head of this name.
            set_active: Activate the head.
        Raises:
            UnknownHeadType: the config's `head_type` is not known (an AttributeError).
            UnsupportedError: the model's class does not support it.
            HeadError: the config has no `head_type`, unknown fields or values that no head can have, or there is a head
                of this name.
        """
        head_type, options = read_config(head_name, config)
        self._add_head(head_type, head_name, overwrite_ok, set_active, options)

    def add_prediction_head(self, head: PredictionHead, overwrite_ok: bool = False, set_active: bool = True) -> None:
        """Adds a head that was built for this model. After `train_adapter` it is frozen until that names it again.

        Args:
            head: The head; `head.name` is its name.
            overwrite_ok: Replace a head of this name.
            set_active: Activate the head.
        Raises:
            HeadError: there is a head of this name, or a head cannot have this name.
        """
        if not isinstance(head, PredictionHead):
            raise HeadError(f"A {type(head).__name__} is no head. Allowed: a PredictionHead.")
        self._check_new(head.name, overwrite_ok)
        if self._trained_heads is not None and head.name not in self._trained_heads:
            head.requires_grad_(False)
            logger.warning(
                "Head %r is frozen, because train_adapter was called before it was added. Call it again to train "
                "this head too.",
                head.name,
            )
        self.heads[head.name] = head
        self.config.prediction_heads[head.name] = head.config
        self._heads_changed()
        if set_active:
            self.active_head = head.name
        elif self._active_head == head.name:
            self._use_labels_of(head.name)

    def _check_new(self, name: str, overwrite_ok: bool) -> None:
        if name in self.heads:
            if not overwrite_ok:
                raise HeadError(f"There is a head {name!r} already. Choose another name or pass overwrite_ok=True.")
        elif not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
            raise HeadError(f"A head cannot be called {name!r}. Use a name without dots that torch has no use for.")

    def delete_head(self, head_name: str) -> None:
        """Removes a head. Nothing happens if there is none of this name.

        Args:
            head_name: Name of the head.
        """
        if head_name not in self.heads:
            logger.info("There is no head %r to delete.", head_name)
            return
        del self.heads[head_name]
        del self.config.prediction_heads[head_name]
        if self._active_head is not None and head_name in head_names(self._active_head):
            self.active_head = None
        self._heads_changed()

    def average_head(
        self,
        head_name: str,
        heads: Sequence[str] | Mapping[str, float] | None = None,
        weights: Sequence[float] | None = None,
        normalize_weights: bool = True,
        overwrite_ok: bool = False,
        set_active: bool = False,
        *,
        head_list: Sequence[str] | Mapping[str, float] | None = None,
        combine_strategy: str = "linear",
        **options: Any,
    ) -> None:
        """Adds a head made of other heads, by default with the weighted mean of their tensors.

        Args:
            head_name: Name of the new head.
            heads: Names of the heads, or a dict name -> weight.
            weights: One number per head; equal shares by default.
            normalize_weights: Divide the weights by their sum.
            overwrite_ok: Replace a head of this name.
            set_active: Activate the head.
            head_list: Another name of `heads`.
            combine_strategy: How they are combined, as for `average_adapter`: those that are not for LoRA alone.
            options: Of the algorithm, such as `density` and `seed`.
        Raises:
            HeadError: a head is unknown, heads differ in class or config (dropout apart), weights or options do not
                fit.
        """
        self._check_new(head_name, overwrite_ok)
        shares = head_shares(heads or head_list or (), weights, normalize_weights)
        sources = [self._get_head(name) for name in shares.names]
        state = average_heads(sources, shares, combine_strategy, options)
        head_type, options = read_config(head_name, sources[0].config)
        head = self._make_head(head_type, head_name, options)
        head.load_state_dict(state)
        self.add_prediction_head(head, overwrite_ok, set_active)

    # Looking up

    def _get_head(self, name: str) -> PredictionHead:
        if name not in self.heads:
            raise HeadError(f"There is no head {name!r}. {choices(name, self.heads)}")
        head = self.heads[name]
        assert isinstance(head, PredictionHead)
        return head

    def get_prediction_heads_config(self) -> dict[str, dict[str, Any]]:
        """Config of each head, by name."""
        return {name: self._get_head(name).config for name in self.heads}

    def get_labels_dict(self, head: str | None = None, head_name: str | None = None) -> dict[int, str] | None:
        """Label of each id of a head; None if there is no head or its labels have no names.

        Args:
            head: Name of the head; the active one by default.
            head_name: Another name of `head`.
        Raises:
            HeadError: there is no such head, or several are active.
        """
        name = head or head_name or self._active_head
        if name is None:
            return None
        if not isinstance(name, str):
            raise HeadError(f"Heads {name} are active. Say which one: get_labels(head=...).")
        label2id = self._get_head(name).config.get("label2id")
        return {index: label for label, index in label2id.items()} if label2id else None

    def get_labels(self, head: str | None = None, head_name: str | None = None) -> list[str] | None:
        """Labels of a head in the order of their ids; None as for `get_labels_dict`.

        Args:
            head: Name of the head; the active one by default.
            head_name: Another name of `head`.
        """
        labels = self.get_labels_dict(head, head_name)
        return None if labels is None else [labels[index] for index in sorted(labels)]

    # Activating

    @property
    def active_head(self) -> Heads:
        """The head(s) that run: a name, a list of names, a BatchSplit of names, or None."""
        return self._active_head

    @active_head.setter
    def active_head(self, head: Heads) -> None:
        heads = as_heads(head)
        for name in head_names(heads):
            self._get_head(name)
        if isinstance(heads, str):
            self._use_labels_of(heads)
        self._active_head = heads

    def _use_labels_of(self, head_name: str) -> None:
        labels = self.get_labels_dict(head_name)
        if labels is not None:
            self.config.id2label = labels
            self.config.label2id = {label: index for index, label in labels.items()}
        if self._get_head(head_name).multilabel:
            self.config.problem_type = MULTILABEL
        elif self.config.problem_type == MULTILABEL:
            self.config.problem_type = None

    def _activate_heads_for(self, setup: Child) -> None:
        """Activates the heads named like the last adapters of a set-up, if all of them exist."""
        heads = parse_heads_from_composition(setup)
        if heads is not None and all(name in self.heads for name in head_names(heads)):
            self.active_head = heads

    # Training

    def train_adapter(self, adapter_setup: Any, train_embeddings: bool = False) -> None:
        """Freeze the base model, let the adapters of `adapter_setup` and its heads train, and activate it.

        Args:
            adapter_setup: An adapter name or a block.
            train_embeddings: Let the input embeddings, and the output embeddings of its heads, train too.
        """
        super().train_adapter(adapter_setup, train_embeddings)  # type: ignore[misc]
        self._train_active_heads(train_embeddings)

    def _train_owned(self, noun: str, adapter_setup: Any, unfreeze_adapters: bool) -> None:
        """As without heads; the heads of `adapter_setup` train too."""
        super()._train_owned(noun, adapter_setup, unfreeze_adapters)  # type: ignore[misc]
        self._train_active_heads(False)

    def _train_active_heads(self, train_embeddings: bool) -> None:
        """Let the active heads train, and no others; what leads onto the vocabulary only with the embeddings."""
        active = head_names(self._active_head)
        for name in self.heads:
            head = self._get_head(name)
            head.requires_grad_(name in active)
            if (output := head.get_output_embeddings()) is not None:
                output.requires_grad_(train_embeddings and name in active)
        self._train_input_embeddings(train_embeddings)  # type: ignore[operator]
        self._trained_heads = frozenset(active)


def read_config(head_name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Head type and options of a stored config.

    Raises:
        HeadError: it is no dict, has no `head_type`, or fields that this type does not have.
    """
    if not isinstance(config, Mapping):
        raise HeadError(f"The config of head {head_name!r} is {config!r}. Allowed: a dict as in head.config.")
    options = dict(config)
    head_type = options.pop("head_type", None)
    if not isinstance(head_type, str):
        raise HeadError(f"The config of head {head_name!r} has no 'head_type' that is a name. {choices(None, HEADS)}")
    if head_type in HEADS:
        allowed = set(inspect.signature(HEADS[head_type]).parameters) - {"model", "head_name"}
        unknown = sorted(set(options) - allowed)
        if unknown:
            raise HeadError(
                f"The config of head {head_name!r} ({head_type}) has unknown fields {unknown}. "
                f"{choices(unknown[0], sorted(allowed))}"
            )
    return head_type, options
