"""Do adapters that are pushed to our own hub come back with the same bits, and is all about them found there?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants

import adapters
from adapters import Stack
from adapters.checkpoint.layout import ADAPTER, HEAD
from adapters.errors import AdapterNameError, CheckpointError, CheckpointNotFound, ConfigError, HubError
from tests.contract.cases import carrying
from tests.hub.conftest import Server
from tests.tiny import build, config, perturb

pytestmark = [
    # The hub tells what a card could say besides; huggingface_hub shows it as a warning.
    pytest.mark.filterwarnings("ignore:Warnings while validating metadata:UserWarning"),
    # huggingface_hub 2.4 sends large files by a name that its HTTP library gives up.
    pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning"),
]

BASE = "acme/tiny-bert"
TOLD = {"task": "sentiment/sst-2", "license": "apache-2.0", "language": "en"}


def fresh(seed: int = 0) -> Any:
    """A tiny BERT with flexible heads, called like a repository."""
    torch.manual_seed(seed)
    model = adapters.BertAdapterModel(config("bert"))
    model.config.name_or_path = BASE
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Any:
    """A model with a bottleneck that has a head, and with a LoRA; no tensor is trivial."""
    model = fresh()
    model.add_adapter("rating", config="seq_bn")
    model.add_classification_head("rating", num_labels=3)
    model.add_adapter("style", config="lora[r=4]")
    for name, parameter in model.named_parameters():
        if re.search(r"rating|style", name):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def assert_equal(model: Any, other: Any, name: str, as_name: str | None = None) -> None:
    """All tensors of an adapter and its head have the same bits in both models."""
    own = {key: value for key, value in model.state_dict().items() if f".{name}." in key}
    loaded = {key.replace(f".{as_name or name}.", f".{name}."): value for key, value in other.state_dict().items()}
    assert own
    assert all(torch.equal(value, loaded[key]) for key, value in own.items())


def files(hub: Server, repo: str, revision: str = "main") -> set[str]:
    return set(HfApi(hub.url, hub.token).list_repo_files(repo, revision=revision)) - {".gitattributes"}


def test_a_bottleneck_with_its_head(model: Any, hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = model.push_adapter_to_hub("acme/rating", "rating", datasets_tag="glue", adapter_card_kwargs=TOLD)
    assert files(hub, "acme/rating") == {
        "README.md",
        ADAPTER.config,
        ADAPTER.safetensors,
        HEAD.config,
        HEAD.safetensors,
    }
    other = fresh(1)
    assert other.load_adapter("acme/rating", load_as="again", set_active=True) == "again"
    assert_equal(model, other, "rating", "again")
    other.bert.load_state_dict(model.bert.state_dict(), strict=False)
    model.set_active_adapters("rating")
    tokens = torch.arange(6).reshape(2, 3)
    assert torch.equal(model(tokens).logits, other(tokens).logits)

    info = adapters.get_adapter_info("acme/rating")
    assert info is not None and info.adapter_config is not None
    assert (info.model_name, info.task, info.subtask, info.username) == (BASE, "sentiment", "sst-2", "acme")
    assert (info.sha1_checksum, info.adapter_config["reduction_factor"]) == (pushed.oid, 16)
    assert "acme/rating" in [entry.adapter_id for entry in adapters.list_adapters(BASE, task="sentiment/sst-2")]
    assert adapters.list_adapters("acme/other-model") == []
    (fitting,) = adapters.list_adapters(fits=BASE, task="sentiment/sst-2", author="acme", search="rating")
    assert fitting == replace(info, adapter_config=None)
    assert adapters.list_adapters(fits="acme/other-model") == []

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = fresh(2)
    assert offline.load_adapter("acme/rating") == "rating"
    assert_equal(model, offline, "rating")


@pytest.mark.slow
def test_the_hub_of_the_environment(model: Any, hub: Server, tmp_path: Path) -> None:
    model.push_adapter_to_hub("acme/secret", "style", private=True)
    fresh().save_pretrained(tmp_path / "base")
    code = f"""
import adapters
model = adapters.AutoAdapterModel.from_pretrained({str(tmp_path / "base")!r})
model.load_adapter("acme/secret")
model.save_adapter({str(tmp_path / "saved")!r}, "style")
"""
    env = {"HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, check=True)
    assert list((tmp_path / "hf" / "hub").glob("models--acme--secret"))
    other = fresh(1)
    other.load_adapter(tmp_path / "saved")
    assert_equal(model, other, "style")


def test_the_card(model: Any, hub: Server) -> None:
    model.push_adapter_to_hub("acme/carded", "rating", datasets_tag=["glue"], adapter_card_kwargs=TOLD)

    def card() -> Any:
        path = HfApi(hub.url, hub.token).hf_hub_download("acme/carded", "README.md", force_download=True)
        return ModelCard.load(path)

    data = card().data
    assert data.tags == ["adapter-transformers", "adapters", "adapterhub:sentiment/sst-2", "bert"]
    assert (data.base_model, data.license, data.pipeline_tag) == (BASE, "apache-2.0", "text-classification")
    assert f'adapters.hub.use("{hub.url}")' in card().text
    model.push_adapter_to_hub("acme/carded", "rating", adapter_card_kwargs={"description": "New."})
    assert "New." not in card().text
    model.push_adapter_to_hub(
        "acme/carded", "rating", adapter_card_kwargs={"description": "New."}, overwrite_adapter_card=True
    )
    assert "New." in card().text


def test_a_bare_name_is_in_the_account_of_the_token(model: Any, hub: Server) -> None:
    owner = HfApi(hub.url, hub.token).whoami()["name"]
    model.push_adapter_to_hub("bare-name", "rating")
    assert ADAPTER.config in files(hub, f"{owner}/bare-name")
    path = HfApi(hub.url, hub.token).hf_hub_download(f"{owner}/bare-name", "README.md")
    assert f'model.load_adapter("{owner}/bare-name"' in ModelCard.load(path).text
    other = fresh(1)
    assert other.load_adapter(f"{owner}/bare-name") == "rating"
    assert_equal(model, other, "rating")


def test_names_of_the_index(model: Any, hub: Server) -> None:
    told = {**TOLD, "task": "sentiment/imdb"}
    model.push_adapter_to_hub("acme/by-task", "rating", adapter_card_kwargs=told)
    for name in ("sentiment/imdb@acme", "sentiment/imdb", "imdb", "acme/by-task@main"):
        other = fresh(1)
        assert other.load_adapter(name) == "rating"
        assert_equal(model, other, "rating")
    model.push_adapter_to_hub("alice/by-task", "rating", adapter_card_kwargs=told)
    with pytest.raises(CheckpointNotFound, match=r"(?s)can mean 2 adapters.*acme/by-task.*alice/by-task"):
        fresh().load_adapter("imdb", model_name=BASE)
    with pytest.raises(CheckpointNotFound, match=r"sentiment/imdb"):
        fresh().load_adapter("sentiment/imbd", source="ah")


def test_a_second_push_replaces_what_was_there(model: Any, hub: Server, tmp_path: Path) -> None:
    first = model.push_adapter_to_hub("acme/changing", "rating")
    assert model.push_adapter_to_hub("acme/changing", "rating").oid == first.oid
    second = model.push_adapter_to_hub("acme/changing", "style", local_path=tmp_path, commit_message="Style instead")
    assert files(hub, "acme/changing") == {"README.md", ADAPTER.config, ADAPTER.safetensors}
    assert (tmp_path / ADAPTER.safetensors).is_file()
    other = fresh(1)
    assert other.load_adapter("acme/changing") == "style"
    assert_equal(model, other, "style")
    old = fresh(1)
    assert old.load_adapter("acme/changing", version=first.oid) == "rating"
    assert_equal(model, old, "rating")
    titles = [commit.title for commit in HfApi(hub.url, hub.token).list_repo_commits("acme/changing")]
    assert titles[:2] == ["Style instead", "Upload adapter rating"]
    assert second.oid != first.oid


def test_branches_and_pull_requests(model: Any, hub: Server) -> None:
    model.push_adapter_to_hub("acme/branched", "style", revision="v/2", private=True)
    assert ADAPTER.config in files(hub, "acme/branched", "v/2")
    other = fresh(1)
    assert other.load_adapter("acme/branched", version="v/2") == "style"
    with pytest.raises(CheckpointNotFound, match="no adapter"):
        other.load_adapter("acme/branched")
    with pytest.raises(CheckpointNotFound, match=r"no revision 'v/3'. Allowed: .*Did you mean 'v/2'"):
        other.load_adapter("acme/branched", version="v/3")
    proposed = model.push_adapter_to_hub("acme/branched", "rating", create_pr=True)
    assert proposed.pr_num is not None
    other.load_adapter("acme/branched", version=f"refs/pr/{proposed.pr_num}")
    assert_equal(model, other, "rating")
    with adapters.hub.use(hub.url), pytest.raises(CheckpointNotFound, match="HF_TOKEN"):
        fresh().load_adapter("acme/branched", version="v/2", force_download=True)


def test_a_set_up(model: Any, hub: Server) -> None:
    model.push_adapter_setup_to_hub("acme/stack", Stack("style", "rating"), head_setup="rating")
    other = fresh(1)
    setup, head = other.load_adapter_setup("acme/stack", set_active=True)
    assert (setup, head) == (Stack("style", "rating"), "rating")
    for name in ("style", "rating"):
        assert_equal(model, other, name)
    with pytest.raises(CheckpointNotFound, match="load_adapter_setup"):
        other.load_adapter("acme/stack")


def test_bytes_that_were_changed_on_the_hub(model: Any, hub: Server) -> None:
    model.push_adapter_to_hub("acme/changed", "style")
    weights = HfApi(hub.url, hub.token).hf_hub_download("acme/changed", ADAPTER.safetensors)
    content = Path(weights).read_bytes()
    stored = [path for path in hub.data.rglob("*") if path.is_file() and path.read_bytes() == content]
    assert stored
    for path in stored:
        path.chmod(0o600)
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its hash is"):
        fresh().load_adapter("acme/changed")


def test_the_snippet_of_the_card_runs(model: Any, hub: Server, tmp_path: Path) -> None:
    fresh().save_pretrained(tmp_path / "base")
    model.push_adapter_to_hub("acme/snippet", "rating")
    card = Path(HfApi(hub.url, hub.token).hf_hub_download("acme/snippet", "README.md")).read_text()
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1].replace(BASE, str(tmp_path / "base")), names)
    assert names["model"].active_adapters == Stack("rating")


def test_refusals(model: Any, hub: Server) -> None:
    with pytest.raises(HubError, match=r"(?s)Pushing to acme/pickled failed.*safetensors"):
        model.push_adapter_to_hub("acme/pickled", "style", use_safetensors=False)
    with pytest.raises(HubError, match="Pushing to bob/x failed"):
        model.push_adapter_to_hub("bob/x", "style")
    with adapters.hub.use(hub.url), pytest.raises(HubError, match="HF_TOKEN"):
        model.push_adapter_to_hub("acme/x", "style")
    with pytest.raises(AdapterNameError, match="'org/name'"):
        model.push_adapter_to_hub("acme/x/y", "style")
    with pytest.raises(ConfigError, match="no entry 'licence'"):
        model.push_adapter_to_hub("acme/x", "style", adapter_card_kwargs={"licence": "mit"})
    with pytest.raises(AdapterNameError):
        model.push_adapter_to_hub("acme/x", "unknown")


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_classes_with_a_head_of_their_own(name: str, hub: Server) -> None:
    task = "classification" if name == "bert" else "lm"
    model = carrying(name, "lora", task=task)
    perturb(model, "a")
    model.push_adapter_to_hub(f"acme/plain-{name}", "a")
    other = build(name, task)
    assert other.load_adapter(f"acme/plain-{name}") == "a"
    assert_equal(model, other, "a")
