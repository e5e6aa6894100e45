"""Checks of what is uploaded: each says what is wrong and what to do about it.

Checks are pure: they see the files of a commit and a few facts about the rest of the hub, no database and no clock.
A check is a function from `Subject` to findings, or None where it does not apply, and one line of `CHECKS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import card, configfile, repository, weights
from .finding import Check, Finding
from .subject import CheckContext, Subject, gather

if TYPE_CHECKING:
    from ..repos.files import Files

__all__ = ["CHECKS", "Check", "CheckContext", "Rule", "link", "run"]


class Rule(NamedTuple):
    """A check, as it is registered."""

    id: str
    find: Callable[[Subject], Sequence[Finding] | None]
    passed: str  # what it says where nothing is wrong


CHECKS: Sequence[Rule] = (
    Rule("card.yaml", card.yaml, "The card's front matter can be read."),
    Rule("card.license", card.license, "The card names a licence."),
    Rule("card.task", card.task, "The tag names a known task."),
    Rule("card.base_model", card.base_model, "The base model is named."),
    Rule("card.results", card.results, "The results name known metrics and are in their range."),
    Rule("files.format", repository.no_pickle, "No file can run code when it is opened."),
    Rule("files.safetensors", repository.safetensors, "Every safetensors file is valid."),
    Rule("files.config", configfile.adapter_config, "The config can be read, and its fields hold what they should."),
    Rule("weights.shape", weights.shape, "Every tensor has the shape that the config tells."),
    Rule("weights.finite", weights.finite, "No tensor holds NaN or infinity."),
    Rule("weights.unused", weights.unused, "Every tensor belongs to the adapter."),
    Rule("weights.missing", weights.missing, "No tensor is missing."),
    Rule("head.pair", configfile.head_pair, "The head has its config and its tensors, and fits the adapter."),
    Rule("deps.exist", repository.dependencies, "All dependencies are on this hub."),
    Rule("name.confusable", repository.confusable, "The name looks like no other."),
    Rule("size.quota", repository.quota, "There is room for it."),
)


async def run(files: Files, context: CheckContext) -> list[dict[str, Any]]:
    """What the checks say of the files of a commit, in the order of `CHECKS`.

    A check that does not apply says nothing; one that finds nothing wrong says `ok` once.
    """
    subject = await gather(files, context)
    return await asyncio.to_thread(lambda: [check.shown() for rule in CHECKS for check in _answers(rule, subject)])


def link(check: str) -> str:
    """Where a check is explained, a path on the hub."""
    return f"/docs/checks#{check}"


def _answers(rule: Rule, subject: Subject) -> Iterator[Check]:
    found = rule.find(subject)
    if found is None:
        return
    if not found:
        yield Check(rule.id, "ok", rule.passed, "", link(rule.id))
    for finding in found:
        yield Check(rule.id, finding.level, finding.message, finding.fix, link(rule.id))
