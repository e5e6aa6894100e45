"""Does the code that a page shows load the adapter, when somebody copies it into a new session?"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from huggingface_hub import HfApi, constants
from safetensors.torch import load, load_file

import adapters
from adapterhub import accounts
from adapterhub.hub import Hub
from adapterhub.legacy import import_cards
from tests.adapterhub.conftest import HubServer, Makers
from tests.adapterhub.legacy import old_cards
from tests.tiny import config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Warnings while validating metadata:UserWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
]

BASE, OURS, PEFT = "acme/tiny-bert", "acme/rating", "acme/tuned"
# Put behind a snippet: what it has loaded.
KEEP = """
from safetensors.torch import save_file
save_file({{name: value.contiguous() for name, value in model.state_dict().items() if {mark!r} in name}}, {path!r})
"""


class World:
    """A hub with a base model and two adapters, and what their tensors are."""

    def __init__(self, server: HubServer, tensors: dict[str, dict[str, torch.Tensor]], folder: Path) -> None:
        self.server, self.tensors, self.folder = server, tensors, folder

    def snippets(self, name: str, **query: str) -> dict[str, dict[str, str]]:
        with self.server.client(None) as client:
            found = client.get(f"/api/v1/snippet/{name}", params=query).raise_for_status().json()
        return {item["id"]: item for item in found}

    def run(self, *command: str, **environment: str) -> str:
        """Runs a command in an empty folder, as somebody who has never been here."""
        dirty = ("HF_", "HUGGING", "XET_")
        given = {name: value for name, value in os.environ.items() if not name.startswith(dirty)}
        given |= {"HF_ENDPOINT": self.server.url, "HF_HOME": str(self.folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        given |= environment
        given["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{given['PATH']}"
        done = subprocess.run(command, env=given, cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def world(hub_makers: Makers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("snippets")
    with hub_makers.server(folder / "hub") as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        api = HfApi(server.url, server.token())
        torch.manual_seed(0)
        model = adapters.BertAdapterModel(config("bert"))
        transformers.BertModel(config("bert")).save_pretrained(folder / "base")
        api.create_repo(BASE)
        api.upload_folder(repo_id=BASE, folder_path=folder / "base")

        model.config.name_or_path = BASE
        model.add_adapter("rating", config="seq_bn")
        with adapters.hub.use(server.url, token=server.token()):
            model.push_adapter_to_hub(OURS, "rating", datasets_tag="glue")

        base = transformers.BertModel(config("bert"))
        base.config.name_or_path = base.name_or_path = BASE
        tuned = peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["query"]))
        tuned.peft_config["default"].base_model_name_or_path = BASE
        tuned.save_pretrained(folder / "tuned", save_embedding_layers=False)
        api.create_repo(PEFT)
        api.upload_folder(repo_id=PEFT, folder_path=folder / "tuned")

        own = {name: value for name, value in model.state_dict().items() if ".rating." in name}
        lora = {name.split("encoder.")[1]: v for name, v in tuned.state_dict().items() if "lora_" in name}
        yield World(server, {OURS: own, PEFT: lora}, folder)


def test_every_tab_is_tried(world: World) -> None:
    assert list(world.snippets(OURS)) == ["adapters", "upstream", "hf", "curl"]
    assert list(world.snippets(PEFT)) == ["peft", "transformers", "hf", "curl"]


@pytest.mark.parametrize(
    ("name", "tab", "mark"),
    [
        (OURS, "adapters", ".rating."),
        (OURS, "upstream", ".rating."),
        (PEFT, "peft", "lora_"),
        (PEFT, "transformers", "lora_"),
    ],
)
def test_python(world: World, name: str, tab: str, mark: str) -> None:
    out = world.folder / f"loaded-{tab}.safetensors"
    code = world.snippets(name)[tab]["code"] + KEEP.format(mark=mark, path=str(out))
    world.run(sys.executable, "-W", "error::SyntaxWarning", "-c", code)
    loaded: dict[str, Any] = load_file(out)
    expected = world.tensors[name]
    if name == PEFT:
        loaded = {key.split("encoder.")[1]: value for key, value in loaded.items()}
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", [OURS, PEFT])
@pytest.mark.parametrize("pinned", [False, True])
def test_command_line(world: World, name: str, pinned: bool) -> None:
    revision = HfApi(world.server.url).model_info(name).sha
    query = {"rev": revision} if pinned else {}
    code = world.snippets(name, **query)["hf"]["code"]
    assert (str(revision) in code) is pinned
    world.run("bash", "-ec", code)
    (snapshot,) = world.folder.glob(f"home/hub/models--{name.replace('/', '--')}/snapshots/{revision}")
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in snapshot.iterdir()}
    with world.server.client(None) as client:
        for path, digest in files.items():
            assert hashlib.sha256(client.get(f"/{name}/resolve/main/{path}").content).hexdigest() == digest
    assert "adapter_config.json" in files


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("name", [OURS, PEFT])
def test_curl(world: World, name: str) -> None:
    code = world.snippets(name)["curl"]["code"]
    world.run("bash", "-ec", code)
    (path,) = world.folder.glob("adapter*.safetensors")
    assert load_file(path)
    path.unlink()


def test_fetching_the_weights_of_an_old_card(world: World) -> None:
    """The old hub's card names an archive of another host; the page's code brings its weights here."""
    model = adapters.BertAdapterModel.from_pretrained(world.folder / "base")
    model.add_adapter("old", config="seq_bn")
    old = world.folder / "archives"
    model.save_adapter(str(old / "old"), "old", use_safetensors=False)
    with zipfile.ZipFile(old / "old.zip", "w") as archive:
        for path in (old / "old").iterdir():
            archive.write(path, path.name)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(old))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/old.zip"
        card = old_cards.SST.replace("https://example.org/2.zip", url).replace("bert-base-uncased", BASE)
        admin = world.server.call(lambda hub: principal_of(hub, "alice"))
        folder = old_cards.write(world.folder / "old-hub", {"acme/old.yaml": card})
        world.server.call(lambda hub: import_cards(hub, folder, admin))
        (snippet,) = world.snippets("acme/old").values()
        world.run(sys.executable, "-c", snippet["code"], HF_TOKEN=world.server.token())
        site.shutdown()
    assert list(world.snippets("acme/old")) == ["adapters", "upstream", "hf", "curl"]
    with world.server.client(None) as client:
        loaded = load(client.get("/acme/old/resolve/main/adapter.safetensors").content)
    own = {name: value for name, value in model.state_dict().items() if ".old." in name}
    assert loaded.keys() == own.keys() and all(torch.equal(loaded[name], own[name]) for name in own)


async def principal_of(hub: Hub, name: str) -> accounts.Principal:
    async with hub.db.read() as conn:
        return await accounts.principal(hub.db, (await accounts.find_account(conn, name))["id"])
