"""A hub with some adapters, which the tests of a module share."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.hub import Hub
from tests.adapterhub.conftest import PASSWORD

from .files import adapter, push


async def fill(hub: Hub) -> dict[str, str]:
    """Adapters of two organisations, and what should not be seen; returns their newest commits."""
    result = "results:\n- {dataset: glue/sst2, split: validation, metric: accuracy, value: %s}\n"
    base = "legacy_id: '@acme/old'\ndependencies:\n- {key: bob/wiki, description: below}\n" + result % 0.93
    return {
        "acme/sst": await push(hub, "acme/sst", adapter(front=base)),
        "acme/sst-lora": await push(hub, "acme/sst-lora", adapter(config="lora", front=result % 95.5)),
        "bob/wiki": await push(hub, "bob/wiki", adapter(task="en/wiki", front="language: en\n"), user="bob"),
        "bob/sst": await push(hub, "bob/sst", adapter(model="roberta-base"), user="bob"),
        "acme/secret": await push(hub, "acme/secret", adapter(fill=b"\1\1\1\1"), private=True),
    }


@pytest.fixture(scope="module")
def heads(shared_hub_server: Any) -> dict[str, str]:
    """The newest commits of the adapters that the shared hub was filled with."""
    found: dict[str, str] = shared_hub_server.call(fill)
    return found


@pytest.fixture
def get(shared_hub_server: Any, heads: dict[str, str]) -> Any:
    """Asks the API: `get("/tree", user="bob", task="nli")` gives status and body; `sure` sends the password too."""

    def ask(
        path: str, user: str | None = None, verb: str = "GET", body: Any = None, *, sure: bool = False, **query: Any
    ) -> tuple[int, Any]:
        with shared_hub_server.client(user) as client:
            options: dict[str, Any] = {"params": query} if query else {}
            if sure:
                options["headers"] = {"X-Password": PASSWORD}
            if body is not None:
                options["json"] = body
            answer = client.request(verb, f"/api/v1{path}", **options)
        return answer.status_code, answer.json() if answer.content else None

    return ask
