"""Are lists the same whether what is asked for is rare or common, which is looked for in different ways?"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adapterhub.index import search
from adapterhub.protocol import models
from tests.adapterhub.acceptance import seed
from tests.adapterhub.conftest import HubServer, Makers

CARDS = {
    "alice/one": (["a", "b"], "Reviews of films"),
    "alice/two": (["a"], "Reviews of books"),
    "alice/three": (["b"], "Names in news"),
    "acme/four": (["a", "b", "c"], "Reviews of news"),
    "acme/five": ([], "Nothing of all this"),
}
ASKED = {
    "filter=a": {"alice/one", "alice/two", "acme/four"},
    "filter=a,b": {"alice/one", "acme/four"},
    "filter=a&filter=c": {"acme/four"},
    "filter=none": set(),
    "filter=a&author=acme": {"acme/four"},
    "search=alice": {"alice/one", "alice/two", "alice/three"},
    "search=alice&filter=b": {"alice/one", "alice/three"},
    "search=o": {"alice/one", "alice/two", "acme/four"},
    "filter=a&sort=createdAt&direction=1&limit=1": {"alice/one"},
}


@pytest.fixture(scope="module")
def server(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    with hub_makers.server(tmp_path_factory.mktemp("hub")) as server:
        with server.client() as alice:
            for name, (tags, title) in CARDS.items():
                card = f"---\ntags: [{', '.join(tags)}]\n---\n# {title}\n"
                seed.create(alice, name)
                seed.commit(alice, name, seed.lines({"README.md": card.encode()})).raise_for_status()
        yield server


@pytest.mark.parametrize("common", [1, 2, 3, 2000])
@pytest.mark.parametrize("asked", ASKED)
def test_rare_or_common(server: HubServer, monkeypatch: pytest.MonkeyPatch, common: int, asked: str) -> None:
    monkeypatch.setattr(models, "_COMMON", common)
    monkeypatch.setattr(search, "_COMMON", common)
    with server.client(None) as client:
        found = [item["id"] for item in client.get(f"/api/models?{asked}").raise_for_status().json()]
    if asked == "search=o":  # every text that holds the letter
        assert ASKED[asked] <= set(found)
    else:
        assert set(found) == ASKED[asked]
    assert len(found) == len(set(found))
