"""Checks of the tensors against the config."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .finding import Finding, error, listed, quoted, warning
from .subject import WEIGHTS, Adapter, Subject

__all__ = ["finite", "missing", "shape", "unused"]

_MOST = 5  # findings of one kind per adapter


def shape(subject: Subject) -> list[Finding] | None:
    """Every tensor has the shape that the config tells."""
    fix = "Save the adapter again with `save_adapter`, so that the config and the tensors are of one piece."
    return _each(subject, lambda adapter: [error(text, fix) for text in _first(adapter.comparison.wrong)])


def finite(subject: Subject) -> list[Finding] | None:
    """No tensor holds NaN or infinity."""
    looked_at = [adapter for adapter in subject.adapters if adapter.not_finite is not None]
    fix = "Train again with a lower learning rate or in float32, and upload the new weights."
    return (
        [
            error(f"{quoted(adapter.weights)} holds NaN or infinity in {listed(map(repr, adapter.not_finite))}.", fix)
            for adapter in looked_at
            if adapter.not_finite
        ]
        if looked_at
        else None
    )


def unused(subject: Subject) -> list[Finding] | None:
    """Every tensor belongs to the adapter."""

    def find(adapter: Adapter) -> list[Finding]:
        names = adapter.comparison.unused
        if not names:
            return []
        message = f"{quoted(adapter.weights)} has tensors that the config does not make: {listed(map(repr, names))}."
        return [warning(message, "Save the adapter alone; its name in the config must be that in the tensors' names.")]

    return _each(subject, find)


def missing(subject: Subject) -> list[Finding] | None:
    """No tensor is missing."""

    def find(adapter: Adapter) -> list[Finding]:
        found = []
        if names := adapter.comparison.missing:
            message = f"{quoted(adapter.weights)} lacks what the config makes: {listed(names)}."
            found.append(error(message, "Save the adapter again with `save_adapter`."))
        if gaps := adapter.comparison.gaps:
            message = f"{quoted(adapter.weights)} has no tensors for layer {listed(gaps)}."
            found.append(warning(message, "If that is meant, name these layers in 'leave_out' of the config."))
        return found

    lost = [adapter for adapter in subject.adapters if adapter.weights is None]
    # A card that was taken over from the old hub, which kept no weights, is not to blame.
    taken_over = bool(subject.card and subject.card.data.get("legacy_id") and subject.card.data.get("versions"))
    absent = [
        (warning if taken_over else error)(
            f"There is no {listed(adapter.folder + name for name in WEIGHTS)}, though there is a config.",
            "Upload the weights as adapter.safetensors; PEFT calls them adapter_model.safetensors.",
        )
        for adapter in lost
    ]
    found = _each(subject, find)
    return [*absent, *(found or ())] if absent or found is not None else None


def _each(subject: Subject, find: Callable[[Adapter], list[Finding]]) -> list[Finding] | None:
    """Findings of each adapter whose config and tensors can be read."""
    readable = [adapter for adapter in subject.adapters if adapter.inner and adapter.tensors is not None]
    return [finding for adapter in readable for finding in find(adapter)] if readable else None


def _first(sentences: Sequence[str]) -> list[str]:
    rest = len(sentences) - _MOST
    return [*sentences[:_MOST], *([f"{rest} more tensors are wrong in the same way or another."] if rest > 0 else [])]
