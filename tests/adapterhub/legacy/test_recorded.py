"""The real cards of the old hub, where they lie beside the checkout (../shared/legacy_hub)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from adapterhub.content import cards
from adapterhub.db import schema
from adapterhub.hub import Hub
from adapterhub.legacy import import_cards

FOLDER = Path(os.environ.get("ADAPTERHUB_LEGACY") or Path(__file__).parents[4] / "shared" / "legacy_hub")
# What the old hub's own index (dist/v2) calls the configs of some of them.
IDS = {
    "@ukp/bert-base-multilingual-cased-ar-wiki_pfeiffer": "d345095bcb01e325",
    "@ukp/bert-base-multilingual-cased-et-wiki_houlsby": "f10efa747ae87c60",
    "@ukp/bert-base-uncased_nli_multinli_houlsby": "b1017368d7a97b11",
    "@ukp/xlm-roberta-base-ta-wiki_pfeiffer": "e15331acc3f0a5c0",
    "@vblagoje/bert-base-uncased-conll2003_pfeiffer": "9076f36a74755ac4",
    "@lohfink-rossi/facebook-bart-large_qa_squad2_lohfink-rossi-leaveout": "e36ab9a116654f61",
}


@pytest.mark.conformance
@pytest.mark.skipif(not FOLDER.is_dir(), reason="the old hub's cards are not beside the checkout")
def test_every_card_is_taken_over_as_it_was(hub: Hub, run: Any) -> None:
    paths = [path for path in (FOLDER / "adapters").rglob("*") if path.suffix in (".yaml", ".yml")]
    said = {}
    for path in paths:
        text = path.read_text(encoding="utf-8").removeprefix("---\n")
        said[f"@{path.parent.name}/{path.stem}"] = cards.parse(f"---\n{text}\n---\n").data

    async def work() -> Any:
        done = await import_cards(hub, FOLDER)
        async with hub.db.read() as conn:
            rows = (await conn.execute(sa.select(schema.adapter))).mappings().all()
        return done, {row["legacy_id"]: row for row in rows if row["legacy_id"]}

    done, rows = run(work())
    assert (done.cards, done.repositories, rows.keys()) == (len(paths), len(paths), said.keys())
    for name, row in rows.items():
        assert (row["errors"], row["bytes"]) == (0, 0), name
        assert (row["head_type"] is not None) == bool(said[name]["prediction_head"]), name
    assert {name: rows[name]["config_id"] for name in IDS} == IDS
