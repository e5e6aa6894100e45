"""A head that predicts dependency trees: for each word its head word and their relation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from adapters.errors import HeadError
from adapters.heads.base import IGNORE, PredictionHead, hidden_size
from adapters.heads.outputs import returned


@dataclass
class DependencyParsingOutput(ModelOutput):
    """Scores of a dependency parser.

    Args:
        loss: Cross entropy over arcs plus that over the relations of the gold arcs.
        rel_preds: [B, S, S + 1, L]: relation of word x, if its head is y.
        arc_preds: [B, S, S + 1]: word x has head y; head 0 is the root.
        hidden_states: Of the base model.
        attentions: Of the base model.
    """

    loss: Tensor | None = None
    rel_preds: Tensor | None = None
    arc_preds: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Biaffine(nn.Module):
    """One bilinear form per output, on vectors to which a constant 1 is appended.

        s[b, x, y, o] = [x; 1]^T W_o [y; 1]

    Args:
        width: Width D of the vectors.
        outputs: Forms, a count.
        bias_y: Whether y gets the constant too; x always does.
    """

    def __init__(self, width: int, outputs: int, bias_y: bool) -> None:
        super().__init__()
        self.bias_y = bias_y
        self.weight = nn.Parameter(torch.empty(outputs, width + 1, width + bias_y))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = nn.functional.pad(x, (0, 1), value=1.0)
        if self.bias_y:
            y = nn.functional.pad(y, (0, 1), value=1.0)
        return torch.einsum("bxi,oij,byj->bxyo", x, self.weight, y)


class BiaffineParsingHead(PredictionHead):
    """Biaffine dependency parser over words, each the mean of its positions.

    Paper: Glavas and Vulic 2021, arXiv:2008.06788; scores as in Dozat and Manning 2017, arXiv:1611.01734.

    Args:
        model: The model the head is for.
        head_name: Name of the head in it.
        num_labels: Relations, a count.
        id2label: Names of the relations.
        label2id: `id2label` the other way round, as stored.
    """

    head_type = "dependency_parsing"
    cls_vector = "no"

    def __init__(
        self,
        model: PreTrainedModel,
        head_name: str,
        num_labels: int = 2,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(head_name)
        self.config = self.describe(id2label, label2id, num_labels=num_labels)
        self.build(model)

    def build(self, model: PreTrainedModel) -> None:
        """Creates the two biaffine maps."""
        width = hidden_size(model)
        self.biaffine_arcs = Biaffine(width, 1, bias_y=False)
        self.biaffine_rels = Biaffine(width, self.config["num_labels"], bias_y=True)
        self._adjust(model)

    def forward(
        self,
        outputs: ModelOutput,
        cls_output: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool = False,
        word_starts: Tensor | None = None,
        labels_arcs: Tensor | None = None,
        labels_rels: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Parses.

        Args:
            outputs: Of the base model, over S positions.
            cls_output: Not used.
            attention_mask: Not used.
            return_dict: Give named fields instead of a tuple.
            word_starts: [B, W]: first position of each word, and of what follows the last one; then
                anything that does not increase, such as zeros.
            labels_arcs: [B, W]: gold head of each word, 0 for the root.
            labels_rels: [B, W]: gold relation of each word.
            kwargs: Not used.
        Raises:
            HeadError: `word_starts` is missing.
        """
        if word_starts is None:
            raise HeadError(f"Head {self.name!r} needs word_starts, the first position of each word.")
        states: Tensor = outputs[0]
        words, counts = word_vectors(states, word_starts)
        candidates = torch.cat([states[:, :1], words], dim=1)
        arcs = self.biaffine_arcs(words, candidates).squeeze(-1)
        rels = self.biaffine_rels(words, candidates)
        loss = None
        if labels_arcs is not None and labels_rels is not None:
            loss = self._loss(arcs, rels, labels_arcs, labels_rels, counts)
        return returned(DependencyParsingOutput(loss=loss, rel_preds=rels, arc_preds=arcs), return_dict)

    def _loss(self, arcs: Tensor, rels: Tensor, gold_arcs: Tensor, gold_rels: Tensor, counts: Tensor) -> Tensor:
        width = min(gold_arcs.size(1), arcs.size(1))
        gold_arcs, gold_rels = gold_arcs[:, :width], gold_rels[:, :width]
        real = torch.arange(width, device=arcs.device) < counts[:, None]
        real &= (gold_arcs != IGNORE) & (gold_rels != IGNORE)
        arcs, rels = arcs[:, :width][real], rels[:, :width][real]
        gold = gold_arcs[real]
        chosen = rels[torch.arange(len(gold), device=gold.device), gold]
        return nn.functional.cross_entropy(arcs, gold) + nn.functional.cross_entropy(chosen, gold_rels[real])

    def get_label_names(self) -> list[str]:
        return ["labels_arcs", "labels_rels"]


def word_vectors(states: Tensor, word_starts: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the positions of each word, with zero vectors up to S words, and the words per row.

    Starts count as long as they increase, so that any padding ends a row whatever its value.
    """
    words = torch.zeros_like(states)
    counts = []
    for row, starts in enumerate(word_starts.tolist()):
        spans = list(itertools.pairwise(starts))
        ends = next((i for i, (start, stop) in enumerate(spans) if stop <= max(start, 0)), len(spans))
        for index, (start, stop) in enumerate(spans[:ends]):
            words[row, index] = states[row, start:stop].mean(dim=0)
        counts.append(ends)
    return words, torch.tensor(counts, device=states.device)
