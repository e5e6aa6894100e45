"""Names of base models: some models have two."""

from __future__ import annotations

import sqlalchemy as sa

from ..db import schema

__all__ = ["canonical", "same"]

# Organisations of the Hugging Face hub that took over models which had no namespace before: both names mean one model.
_TOOK_OVER = ("google-bert", "FacebookAI", "openai-community", "distilbert", "google-t5", "albert", "xlnet")


def canonical(name: str) -> str:
    """One name for a base model that has had two: `bert-base-uncased` for `google-bert/bert-base-uncased`."""
    namespace, slash, rest = name.partition("/")
    return rest if slash and namespace in _TOOK_OVER else name


def same(model: str) -> sa.ColumnElement[bool]:
    """Whether a row of `adapter` is for a base model, under whichever of its names."""
    own = canonical(model)
    names = [own] if "/" in own else [own, *(f"{namespace}/{own}" for namespace in _TOOK_OVER)]
    return schema.adapter.c.base_model.in_(names)
