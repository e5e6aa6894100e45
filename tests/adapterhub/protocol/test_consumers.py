"""Do the libraries that people load models with take them from a hub of one's own, bit for bit?"""

from __future__ import annotations

import pytest

from tests.adapterhub.conftest import HubServer
from tests.adapterhub.protocol.conftest import Program


@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, {"HF_HUB_DISABLE_XET": "1"}], ids=["default", "without-xet"])
def test_transformers_and_peft(hub_server: HubServer, program: Program, env: dict[str, str]) -> None:
    told = program("consumers.py", hub_server, **env)
    assert told == dict.fromkeys(told, True) and len(told) == 8
    with hub_server.client() as client:
        base, lora = (client.get(f"/api/models/acme/{name}").json() for name in ("tiny-bert", "tiny-lora"))
        adapter = client.get("/api/v1/adapters/acme/tiny-lora").json()
    assert lora["config"]["peft"]["base_model_name_or_path"] == "acme/tiny-bert" == adapter["base_model"]
    assert (adapter["library"], adapter["method"]) == ("peft", "lora")
    assert base["config"]["model_type"] == "bert" and base["library_name"] == "transformers"
