"""Which adapters may be listed for whom."""

from __future__ import annotations

import sqlalchemy as sa

from ..accounts import Principal
from ..db import schema

__all__ = ["readable", "visible_parts", "visible_to"]

_adapter = schema.adapter.c


def visible_to(principal: Principal) -> sa.ColumnElement[bool]:
    """Whether a row of `adapter` may be listed: it is public, or in a namespace of the caller's; and not yanked."""
    return sa.or_(*visible_parts(principal))


def visible_parts(
    principal: Principal, visible: sa.ColumnElement[bool] = _adapter.visible
) -> list[sa.ColumnElement[bool]]:
    """The public adapters, and those only the caller's namespaces see; apart, each is found through an index.

    Args:
        visible: the column, or the same so that no index on it is used.
    """
    own = readable(principal)
    if not own:
        return [visible]
    mine = sa.select(schema.repo.c.id).where(
        schema.repo.c.owner_id.in_(sa.select(schema.account.c.id).where(schema.account.c.name.in_(own))),
        schema.repo.c.private,
        schema.repo.c.yanked.is_(None),
    )
    withdrawn = sa.exists().where(schema.yank.c.repo_id == _adapter.repo_id, schema.yank.c.oid == _adapter.oid)
    hidden = sa.and_(sa.not_(visible), _adapter.repo_id.in_(mine), _adapter.library != "other", sa.not_(withdrawn))
    return [visible, hidden]


def readable(principal: Principal) -> tuple[str, ...]:
    """The namespaces whose private repositories the caller may list."""
    return tuple(sorted(name for name in principal.namespaces if principal.may_read(name, name)))
