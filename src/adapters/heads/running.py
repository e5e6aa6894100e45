"""Which heads run in one forward call, and on which rows? Single heads, lists, and blocks of heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from adapters.call import CALL
from adapters.composition import steps
from adapters.composition.blocks import (
    AdapterCompositionBlock,
    BatchSplit,
    MultiTask,
    PerRow,
    Stack,
    parse_heads_from_composition,
)
from adapters.errors import HeadError, SizeError, choices
from adapters.heads.base import PredictionHead
from adapters.heads.output_embeddings import Heads, OutputEmbeddingsMixin, head_names
from adapters.heads.outputs import MultiHeadOutput, Rows, as_one_output, carry_over, cut, returned, take_rows, tile
from adapters.heads.registry import HEADS
from adapters.runtime.active import Setup, active_head_setup, active_setup
from adapters.runtime.engine import Engine
from adapters.runtime.mixing import Mixture
from adapters.runtime.programs import Program

LABELS = ("labels", "start_positions", "end_positions", "labels_arcs", "labels_rels")
"""Arguments from which built-in heads compute a loss."""

ClsVector = Tensor | Callable[[PredictionHead], Tensor | None] | None
"""The vector per row that classification heads read, or how to get it for a head."""


class RunHeadsMixin(OutputEmbeddingsMixin):
    """Runs the heads that are asked for on the output of the base model."""

    _engine: Engine

    def _used_heads(self, head: Heads = None) -> Heads:
        """Heads of one forward call: those asked for, else those of the AdapterSetup, else the active ones."""
        if head is not None:
            return as_heads(head)
        mixture = CALL.now.mixture
        if mixture is not None and mixture.programs is self._engine.programs:
            return self._heads_of_rows(mixture)
        context = active_head_setup()
        if context is None or self._follows_without_heads(context):
            return self._active_head
        return as_heads(context)

    def _heads_of_rows(self, mixture: Mixture) -> Heads:
        """The heads of a batch whose rows were given adapters: those named like them, and else the active one."""
        names = mixture.heads(self.heads.keys())
        known = dict.fromkeys(name for name in names if name is not None)
        if not known:
            return self._active_head
        if None in names:
            if not isinstance(self._active_head, str):
                row = names.index(None)
                raise HeadError(
                    f"Row {row} has the adapter {mixture.children[row]!r}, which has no head of its name, while others "
                    f"have one, and of the active heads {self._active_head!r} none is for it. Activate one head, or "
                    "pass head= for all rows."
                )
            known[self._active_head] = None
        return next(iter(known)) if len(known) == 1 else PerRow(*known)

    def _follows_without_heads(self, context: Heads) -> bool:
        """Whether heads were not asked for by name, but follow from adapters that have no heads."""
        missing = any(name not in self.heads for name in head_names(context))
        return missing and context == parse_heads_from_composition(active_setup(self))

    def forward_head(
        self,
        outputs: ModelOutput,
        head_name: Heads = None,
        cls_output: ClsVector = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = False,
        context: object = None,
        task_ids: Tensor | list[str] | None = None,
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
            task_ids: With `MultiTask`, the task of each row; by default as given to the model.
            kwargs: Labels and other arguments of the heads. A dict {head: value} gives several heads their own: with
                `BatchSplit` and `MultiTask` for the rows of that head, in order.
        Returns:
            The head's output, a `MultiHeadOutput` for several heads, or `outputs` itself if there is no head. With
            `adapter_names` one output with the rows in order, where the heads of the rows give alike ones.
        Raises:
            HeadError: a head is unknown, there are not as many heads as Parallel has children, or labels are given
                that no head reads.
            SizeError: BatchSplit's sizes do not add up to the rows, or task_ids do not fit.
        """
        heads = self._used_heads(head_name)
        self._check_labels(heads, kwargs)
        kwargs["attention_mask"] = attention_mask
        if not heads:
            return returned(outputs, return_dict)
        total = outputs[0].size(0)
        if isinstance(heads, str):
            copies = self._channels()
            kwargs = {k: tile(v, total, copies) if has_rows(v) else v for k, v in kwargs.items()}
            result: ModelOutput = self._run_head(heads, outputs, cls_output, kwargs)
        elif (shares := self._shares(heads, total, outputs[0].device, task_ids)) is None:
            parts = [self._run_head(name, outputs, cls_output, kwargs) for name in head_names(heads)]
            result = MultiHeadOutput(head_outputs=parts, past_key_values=outputs.get("past_key_values"))
        else:
            copied = None if isinstance(heads, BatchSplit | MultiTask | PerRow) else total // self._channels()
            result = self._run_shares(shares, outputs, cls_output, kwargs, copied)
            if isinstance(heads, PerRow):
                result = as_one_output(result, outputs)
        return returned(result, return_dict)

    def _check_labels(self, heads: Heads, given: Mapping[str, Any]) -> None:
        """Refuse labels from which no head computes a loss."""
        labels = [name for name in LABELS if given.get(name) is not None]
        if not labels:
            return
        active = [self._get_head(name) for name in head_names(heads)]
        if not active:
            raise HeadError(
                f"{labels} were given, but no head is active that could compute a loss from them. Add a head, such as "
                "model.add_classification_head(name), or activate one: model.active_head = name. "
                f"{choices(None, self.heads)}"
            )
        if any(head.head_type not in HEADS for head in active):
            return
        if any(set(head.get_label_names()) <= set(labels) for head in active):
            return
        needed = "; ".join(f"{head.name!r} ({head.head_type}) needs {head.get_label_names()}" for head in active)
        raise HeadError(f"{labels} were given, but no active head computes a loss from that: {needed}.")

    def _run_head(
        self, name: str, outputs: ModelOutput, cls_output: ClsVector, kwargs: Mapping[str, Any]
    ) -> ModelOutput:
        head = self._get_head(name)
        own = {key: value.get(name) if _by_head(value, self.heads) else value for key, value in kwargs.items()}
        output: ModelOutput = head(outputs, cls_output=self._cls_vector(head, cls_output), return_dict=True, **own)
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

    def _shares(
        self, heads: Heads, total: int, device: torch.device, ids: Tensor | list[str] | None
    ) -> list[tuple[str, Rows]] | None:
        """Each head with the rows that are its own; None if every head reads all of them."""
        names = head_names(heads)
        if isinstance(heads, PerRow):
            own = [name or self._active_head for name in CALL.now.mixture.heads(self.heads)]
            chosen = torch.tensor([names.index(str(name)) for name in own], device=device)
            chosen = chosen.repeat_interleave(total // len(own))
            return [(name, (chosen == number).nonzero().flatten()) for number, name in enumerate(names)]
        if isinstance(heads, MultiTask):
            tasks = steps.task_ids(self._tasks(heads), total, device, ids)
            return [(name, (tasks == task).nonzero().flatten()) for task, name in enumerate(names)]
        if isinstance(heads, BatchSplit):
            sizes = heads.batch_sizes
            if sum(sizes) != total:
                raise SizeError(
                    f"{heads!r} has batch_sizes {sizes}, which add up to {sum(sizes)}, but the batch has {total} rows."
                )
        elif (channels := self._channels()) == 1:
            return None
        elif len(names) != channels or total % channels:
            raise HeadError(
                f"{self._setup()} runs {channels} copies of the batch, but there are {len(names)} heads "
                f"({names}) for {total} rows. Activate one head per child."
            )
        else:
            sizes = [total // channels] * channels
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [(name, slice(end - size, end)) for name, size, end in zip(names, sizes, ends, strict=True)]

    def _tasks(self, heads: MultiTask) -> AdapterCompositionBlock:
        """The block whose children task ids may name: that of the adapters, where there is one of as many tasks."""
        setup = self._setup()
        final = setup[-1] if isinstance(setup, Stack) and setup else setup
        return final if isinstance(final, MultiTask) and len(final) == len(heads) else heads

    def _program(self) -> Program | None:
        """What the call that runs follows, whatever others activate meanwhile; None outside, and without adapters."""
        program: Program | None = CALL.now.program
        return program if program is not None and program.model is self._engine.programs else None

    def _setup(self) -> Setup:
        """The set-up of the call that runs."""
        program = self._program()
        return active_setup(self) if program is None else program.setup

    def _channels(self) -> int:
        """How many copies of the batch the call makes."""
        if (program := self._program()) is not None:
            return program.copies
        setup = active_setup(self)
        return 1 if setup is None else setup.parallel_channels

    def _run_shares(
        self,
        shares: Sequence[tuple[str, Rows]],
        outputs: ModelOutput,
        cls_output: ClsVector,
        kwargs: Mapping[str, Any],
        copied: int | None,
    ) -> MultiHeadOutput:
        """Runs each head on rows of its own; arguments of `copied` rows are those of every share already."""
        total = outputs[0].size(0)
        results, losses = [], []
        for name, rows in shares:
            head = self._get_head(name)
            own = {
                key: cut(value, rows, total) if has_rows(value) and value.size(0) != copied else value
                for key, value in kwargs.items()
            }
            empty = not (len(rows) if isinstance(rows, Tensor) else rows.stop - rows.start)
            if empty:
                own |= dict.fromkeys(head.get_label_names())
            vector = self._cls_vector(head, cls_output)
            vector = None if vector is None else vector[rows]
            results.append(self._run_head(name, take_rows(outputs, rows, total), vector, own))
            if not empty:
                losses.append(results[-1].get("loss"))
        known = [loss for loss in losses if loss is not None]
        return MultiHeadOutput(
            loss=torch.stack(known).sum() if known and len(known) == len(losses) else None,
            head_outputs=results,
            past_key_values=outputs.get("past_key_values"),
            rows=[rows for _, rows in shares if isinstance(rows, Tensor)] or None,
        )


def as_heads(heads: Heads | AdapterCompositionBlock) -> Heads:
    """What can be active, from what users write: a Stack or Parallel stands for the heads it names."""
    if isinstance(heads, AdapterCompositionBlock) and not isinstance(heads, BatchSplit | MultiTask | PerRow):
        return parse_heads_from_composition(heads)
    return heads


def has_rows(value: object) -> bool:
    """Whether an argument of a head has a row per example."""
    return isinstance(value, Tensor) and value.dim() > 0


def _by_head(value: object, heads: object) -> bool:
    """Whether an argument of a head is a dict that gives several heads their own."""
    return isinstance(value, Mapping) and bool(value) and all(name in heads for name in value)  # type: ignore[operator]
