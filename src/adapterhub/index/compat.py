"""Which adapters fit a model: those made for it, and those made for models of the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..accounts import Principal
from ..db import schema
from . import base_models
from .visible import visible_to

__all__ = ["Compatible", "Shape", "compatible", "loads_into", "shape_in", "shape_of"]

_adapter = schema.adapter.c
_SHOWN = ("base_model", "model_type", "hidden_size", "layers", "task", "subtask", "method", "config_name", "parameters")


@dataclass(frozen=True)
class Shape:
    """What must be equal for the tensors of an adapter to fit."""

    model_type: str | None = None
    hidden_size: int | None = None
    layers: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether enough is known to compare."""
        return self.model_type is not None and self.hidden_size is not None


@dataclass(frozen=True)
class Compatible:
    """Adapters that fit a model.

    Attributes:
        shape: the shape they were compared with.
        same: made for this model.
        fits: made for another model of the same type and sizes: their tensors fit, their results may not be good.
    """

    shape: Shape
    same: Sequence[Mapping[str, Any]]
    fits: Sequence[Mapping[str, Any]]


async def compatible(
    conn: AsyncConnection, principal: Principal, model: str | None, shape: Shape | None = None, *, limit: int = 100
) -> Compatible:
    """The adapters that fit a model, the most used first.

    Args:
        model: name of the base model.
        shape: type and sizes, if they are known; else they are taken from adapters for the model.
    """
    given = shape or Shape()
    if model and not given.is_known:
        given = await shape_of(conn, principal, model)
    same = await _rows(conn, principal, [base_models.same(model)], limit) if model else []
    fits: list[Mapping[str, Any]] = []
    if given.is_known:
        others = [sa.or_(_adapter.base_model.is_(None), sa.not_(base_models.same(model)))] if model else []
        fits = await _rows(conn, principal, [loads_into(None, given), *others], limit)
    return Compatible(given, same, fits)


def loads_into(model: str | None, shape: Shape) -> sa.ColumnElement[bool]:
    """Whether a row of `adapter` was made for a model, or for one of its type and sizes.

    One whose weights name no layers, as prompts do, fits any number of them.
    """
    ways = [base_models.same(model)] if model else []
    if shape.is_known:
        alike = [_adapter.model_type == shape.model_type, _adapter.hidden_size == shape.hidden_size]
        if shape.layers is not None:
            layerless = sa.and_(_adapter.layers.is_(None), _adapter.bytes > 0)
            alike.append(sa.or_(_adapter.layers == shape.layers, layerless))
        ways.append(sa.and_(*alike))
    return sa.or_(sa.false(), *ways)


# What configs of models call their width and their layers, the more usual name first.
_WIDTHS = ("hidden_size", "d_model", "n_embd", "dim", "embed_dim")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers")


def shape_in(config: Mapping[str, Any]) -> Shape:
    """The shape that the `config.json` of a model tells; that of its text part, where it has several."""
    inner = config.get("text_config")
    parts = [config, *([inner] if isinstance(inner, Mapping) else [])]

    def first(names: Sequence[str]) -> int | None:
        found = (part.get(name) for part in parts for name in names)
        return next((value for value in found if type(value) is int and 0 < value < 2**31), None)

    model_type = config.get("model_type")
    known = isinstance(model_type, str) and 0 < len(model_type) <= 64
    return Shape(model_type if known else None, first(_WIDTHS), first(_LAYERS))


async def shape_of(conn: AsyncConnection, principal: Principal, model: str) -> Shape:
    """The shape that most adapters for a model tell; they may leave out layers, so that the most layers count."""
    statement = (
        sa.select(_adapter.model_type, _adapter.hidden_size, sa.func.max(_adapter.layers))
        .where(visible_to(principal), base_models.same(model), _adapter.model_type.is_not(None))
        .group_by(_adapter.model_type, _adapter.hidden_size)
        .order_by(sa.func.count().desc(), _adapter.hidden_size)
    )
    row = (await conn.execute(statement.limit(1))).first()
    return Shape(*row) if row else Shape()


async def _rows(
    conn: AsyncConnection, principal: Principal, where: Sequence[sa.ColumnElement[bool]], limit: int
) -> list[Mapping[str, Any]]:
    full_name = (schema.repo.c.namespace + "/" + schema.repo.c.name).label("full_name")
    statement = (
        sa.select(full_name, *(_adapter[key] for key in _SHOWN), _adapter.downloads)
        .join(schema.repo, schema.repo.c.id == _adapter.repo_id)
        .where(visible_to(principal), _adapter.library != "other", *where)
        .order_by(_adapter.downloads.desc(), _adapter.repo_id.desc())
        .limit(limit)
    )
    return [dict(row) for row in (await conn.execute(statement)).mappings()]
