"""Which heads does a model have, which of them run, and on what? The verbs of models with flexible heads."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from adapters.composition.blocks import AdapterCompositionBlock, BatchSplit, parse_heads_from_composition
from adapters.errors import CompositionError, HeadError, UnsupportedError, choices
from adapters.heads.adding import AddHeadMethods
from adapters.heads.averaging import average_heads, average_weights
from adapters.heads.base import PredictionHead
from adapters.heads.output_embeddings import Heads, OutputEmbeddingsMixin, head_names
from adapters.heads.outputs import MultiHeadOutput, carry_over, cut, give, take_rows, tile
from adapters.heads.registry import HEADS, HeadFactory, find_factory
from adapters.runtime.active import active_head_setup, active_setup

logger = logging.getLogger(__name__)

ClsVector = Tensor | Callable[[PredictionHead], Tensor | None] | None
"""The vector per row that classification heads read, or how to get it for a head."""


class FlexibleHeadsMixin(AddHeadMethods, OutputEmbeddingsMixin):
    """Named prediction heads that can be added, removed, saved and switched, on one base model."""

    head_types: ClassVar[tuple[str, ...]] = ()
    """Built-in head types that the model supports."""

    custom_heads: dict[str, HeadFactory]

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

    def _add_head(self, head_type: str, head_name: str, overwrite_ok: bool, set_active: bool, **options: Any) -> None:
        self._check_new(head_name, overwrite_ok)
        if head_type in HEADS and head_type not in self.head_types:
            raise UnsupportedError(
                f"{type(self).__name__} does not support head type {head_type!r}. "
                f"It supports: {', '.join(self.head_types) or 'none'}."
            )
        factory = find_factory(head_type, self.custom_heads)
        head = factory(self, head_name, **options)
        head.config = {"head_type": head_type, **(head.config or options)}
        self.add_prediction_head(head, overwrite_ok, set_active)

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
        self._add_head(head_type, head_name, overwrite_ok, set_active, **kwargs)

    def register_custom_head(self, identifier: str, head: HeadFactory) -> None:
        """Makes a head type known to this model; `adapters.heads.register_custom_head` tells all models.

        Args:
            identifier: Its `head_type`.
            head: A `PredictionHead` class or function, called as head(model, head_name, **config).
        """
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
            HeadError: the config has no `head_type` or unknown fields, or there is a head of this name.
        """
        options = dict(config)
        head_type = options.pop("head_type", None)
        if head_type is None:
            raise HeadError(f"The config of head {head_name!r} has no 'head_type'. {choices(None, HEADS)}")
        if head_type in HEADS:
            allowed = set(inspect.signature(HEADS[head_type].__init__).parameters) - {"self", "model"}
            unknown = sorted(set(options) - allowed)
            if unknown:
                raise HeadError(
                    f"The config of head {head_name!r} ({head_type}) has unknown fields {unknown}. "
                    f"{choices(unknown[0], sorted(allowed - {'head_name'}))}"
                )
        self._add_head(head_type, head_name, overwrite_ok, set_active, **options)

    def add_prediction_head(self, head: PredictionHead, overwrite_ok: bool = False, set_active: bool = True) -> None:
        """Adds a head that was built for this model.

        Args:
            head: The head; `head.name` is its name.
            overwrite_ok: Replace a head of this name.
            set_active: Activate the head.
        Raises:
            HeadError: there is a head of this name, or a head cannot have this name.
        """
        self._check_new(head.name, overwrite_ok)
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
        heads: Sequence[str] | Mapping[str, float],
        weights: Sequence[float] | None = None,
        normalize_weights: bool = True,
        overwrite_ok: bool = False,
        set_active: bool = False,
    ) -> None:
        """Adds a head whose tensors are the weighted mean of those of other heads.

        Args:
            head_name: Name of the new head.
            heads: Names of the heads, or a dict name -> weight.
            weights: One number per head; equal shares by default.
            normalize_weights: Divide the weights by their sum.
            overwrite_ok: Replace a head of this name.
            set_active: Activate the head.
        Raises:
            HeadError: a head is unknown, heads differ in class or config (dropout apart), weights do not fit.
        """
        self._check_new(head_name, overwrite_ok)
        shares = average_weights(heads, weights, normalize_weights)
        sources = [self._get_head(name) for name in shares]
        state = average_heads(sources, list(shares.values()))
        self.add_prediction_head_from_config(head_name, sources[0].config, overwrite_ok, set_active)
        self._get_head(head_name).load_state_dict(state)

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

    def get_labels_dict(self, head: str | None = None) -> dict[int, str] | None:
        """Label of each id of a head; None if there is no head or its labels have no names.

        Args:
            head: Name of the head; the active one by default.
        Raises:
            HeadError: there is no such head, or several are active.
        """
        name = self._active_head if head is None else head
        if name is None:
            return None
        if not isinstance(name, str):
            raise HeadError(f"Heads {name} are active. Say which one: get_labels(head=...).")
        label2id = self._get_head(name).config.get("label2id")
        return {index: label for label, index in label2id.items()} if label2id else None

    def get_labels(self, head: str | None = None) -> list[str] | None:
        """Labels of a head in the order of their ids; None as for `get_labels_dict`.

        Args:
            head: Name of the head; the active one by default.
        """
        labels = self.get_labels_dict(head)
        return None if labels is None else [labels[index] for index in sorted(labels)]

    # Activating

    @property
    def active_head(self) -> Heads:
        """The head(s) that run: a name, a list of names, a BatchSplit of names, or None."""
        return self._active_head

    @active_head.setter
    def active_head(self, head: Heads) -> None:
        if isinstance(head, str):
            self._get_head(head)
            self._use_labels_of(head)
        self._active_head = as_heads(head)

    def _use_labels_of(self, head_name: str) -> None:
        labels = self.get_labels_dict(head_name)
        if labels is not None:
            self.config.id2label = labels
            self.config.label2id = {label: index for index, label in labels.items()}

    def _activate_heads_for(self, setup: Any) -> None:
        """Activates the heads named like the last adapters of a set-up, if all of them exist."""
        heads = parse_heads_from_composition(setup)
        if heads is not None and all(name in self.heads for name in head_names(heads)):
            self.active_head = heads

    def _used_heads(self, head: Heads = None) -> Heads:
        """Heads of one forward call: those asked for, else those of the AdapterSetup, else the active ones."""
        if head is not None:
            return as_heads(head)
        context = active_head_setup()
        if context is None or self._follows_without_heads(context):
            return self._active_head
        return as_heads(context)

    def _follows_without_heads(self, context: Any) -> bool:
        """Whether heads were not asked for by name, but follow from adapters that have no heads."""
        missing = any(name not in self.heads for name in head_names(context))
        return missing and context == parse_heads_from_composition(active_setup(self))

    # Running

    def forward_head(
        self,
        outputs: ModelOutput,
        head_name: Heads = None,
        cls_output: ClsVector = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = False,
        context: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Runs heads on the output of the base model.

        Args:
            outputs: Of the base model.
            head_name: Heads to run; by default those of the AdapterSetup in force, else the active ones.
            cls_output: Vector per row for classification heads, [B, D]; by default the pooler's or position 0.
            attention_mask: As given to the model, [B, S].
            return_dict: Give named fields instead of a tuple.
            context: Not used; other versions of this method have it.
            kwargs: Labels and other arguments of the heads.
        Returns:
            The head's output, a `MultiHeadOutput` for several heads, or `outputs` itself if there is no head.
        Raises:
            HeadError: a head is unknown, or there are not as many heads as Parallel has children.
            CompositionError: BatchSplit's sizes do not add up to the rows.
        """
        heads = self._used_heads(head_name)
        kwargs["attention_mask"] = attention_mask
        if not heads:
            return give(outputs, return_dict)
        if isinstance(heads, str):
            rows, copies = outputs[0].size(0), self._channels()
            kwargs = {k: tile(v, rows, copies) if has_rows(v) else v for k, v in kwargs.items()}
            result: ModelOutput = self._run_head(heads, outputs, cls_output, kwargs)
        elif isinstance(heads, BatchSplit):
            result = self._run_on_parts(heads, outputs, cls_output, kwargs)
        else:
            result = self._run_list(heads, outputs, cls_output, kwargs)
        return give(result, return_dict)

    def _run_head(
        self, name: str, outputs: ModelOutput, cls_output: ClsVector, kwargs: Mapping[str, Any]
    ) -> ModelOutput:
        head = self._get_head(name)
        cls_vector = self._cls_vector(head, cls_output)
        output: ModelOutput = head(outputs, cls_output=cls_vector, return_dict=True, **kwargs)
        if isinstance(output, ModelOutput):
            carry_over(outputs, output)
        return output

    def _cls_vector(self, head: PredictionHead, cls_output: ClsVector) -> Tensor | None:
        if not callable(cls_output) or head.cls_vector == "no":
            return cls_output if isinstance(cls_output, Tensor) else None
        try:
            return cls_output(head)
        except HeadError:
            if head.cls_vector == "required":
                raise
            return None

    def _run_list(
        self, heads: Sequence[str], outputs: ModelOutput, cls_output: ClsVector, kwargs: Mapping[str, Any]
    ) -> MultiHeadOutput:
        channels = self._channels()
        if channels == 1:
            parts = [self._run_head(name, outputs, cls_output, kwargs) for name in heads]
            return MultiHeadOutput(head_outputs=parts, past_key_values=outputs.get("past_key_values"))
        rows = outputs[0].size(0)
        if len(heads) != channels or rows % channels:
            raise HeadError(
                f"{active_setup(self)} runs {channels} copies of the batch, but there are {len(heads)} heads "
                f"({list(heads)}) for {rows} rows. Activate one head per child."
            )
        size = rows // channels
        blocks = [(name, i * size, (i + 1) * size) for i, name in enumerate(heads)]
        return self._run_blocks(blocks, outputs, cls_output, kwargs, keep=size)

    def _channels(self) -> int:
        setup = active_setup(self)
        return setup.parallel_channels if isinstance(setup, AdapterCompositionBlock) else 1

    def _run_on_parts(
        self, heads: BatchSplit, outputs: ModelOutput, cls_output: ClsVector, kwargs: Mapping[str, Any]
    ) -> MultiHeadOutput:
        rows, sizes = outputs[0].size(0), heads.batch_sizes
        if sum(sizes) != rows:
            raise CompositionError(
                f"{heads!r} has batch_sizes {sizes}, which add up to {sum(sizes)}, but the batch has {rows} rows."
            )
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        names = head_names(heads)
        blocks = [(name, end - size, end) for name, size, end in zip(names, sizes, ends, strict=True)]
        return self._run_blocks(blocks, outputs, cls_output, kwargs)

    def _run_blocks(
        self,
        blocks: Sequence[tuple[str, int, int]],
        outputs: ModelOutput,
        cls_output: ClsVector,
        kwargs: Mapping[str, Any],
        keep: int | None = None,
    ) -> MultiHeadOutput:
        """Runs each head on rows of its own; arguments of `keep` rows are those of one block already."""
        total = outputs[0].size(0)
        results = []
        for name, start, stop in blocks:
            part = take_rows(outputs, start, stop, total)
            own = {
                key: cut(value, start, stop, total) if has_rows(value) and value.size(0) != keep else value
                for key, value in kwargs.items()
            }
            vector = self._cls_vector(self._get_head(name), cls_output)
            vector = None if vector is None else vector[start:stop]
            results.append(self._run_head(name, part, vector, own))
        losses = [result["loss"] for result in results if result.get("loss") is not None]
        loss = torch.stack(losses).sum() if len(losses) == len(results) else None
        cache = outputs.get("past_key_values")
        return MultiHeadOutput(loss=loss, head_outputs=results, past_key_values=cache)


def as_heads(heads: Any) -> Heads:
    """What can be active, from what users write: blocks other than BatchSplit stand for the heads they name."""
    if isinstance(heads, AdapterCompositionBlock) and not isinstance(heads, BatchSplit):
        return parse_heads_from_composition(heads)
    return heads  # type: ignore[no-any-return]


def has_rows(value: Any) -> bool:
    """Whether an argument of a head has a row per example."""
    return isinstance(value, Tensor) and value.dim() > 0
