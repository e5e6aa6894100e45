"""Put adapters on a hub: save, describe, and upload in one commit."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from adapters._version import __version__
from adapters.checkpoint.atomic import saving
from adapters.checkpoint.layout import ADAPTER, HEAD, INTERFACE_FILE, KINDS, SETUP_FILE, Files, make_folder, read_json
from adapters.errors import AdapterNameError, ConfigError, choices
from adapters.hub import session
from adapters.hub.card import CardInfo, render
from adapters.hub.names import is_repo_id
from adapters.methods.presets import ADAPTER_CONFIG_MAP
from adapters.sharding import class_of

CARD = "README.md"
PARTS = {name for layout in (ADAPTER, HEAD) for name in (layout.config, *layout.weights)}
OURS = {SETUP_FILE, INTERFACE_FILE}.union(*(kind.files for kind in KINDS))
"""Files that a push writes, and deletes where it does not write them any more."""

LISTS = ("datasets", "language", "metrics", "tags")
CARD_ENTRIES = (*LISTS, "task", "license", "description", "architecture_training", "results", "citation")
"""What only the person who pushes knows about an adapter: the keys of `adapter_card_kwargs`."""


@dataclass(frozen=True)
class Push:
    """Where a push goes, and as what. The verb `push_adapter_to_hub` of the model says what the fields mean."""

    repo_id: str
    datasets_tag: str | Sequence[str] | None = None
    local_path: str | os.PathLike[str] | None = None
    commit_message: str | None = None
    private: bool | None = None
    token: str | bool | None = None
    overwrite_card: bool = False
    create_pr: bool = False
    revision: str | None = None
    commit_description: str | None = None
    card: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not is_repo_id(self.repo_id):
            raise AdapterNameError(
                f"{self.repo_id!r} cannot be the id of a repository. Write it as 'org/name', of letters, digits, '-', "
                "'_' and '.'."
            )
        card_entries(self.card, self.datasets_tag)


def push_adapter(
    model: Any, name: str, push: Push, use_safetensors: Files = True, with_head: bool = True
) -> CommitInfo:
    """Upload an adapter, with its head if it has one.

    Args:
        model: The model.
        name: The adapter.
        push: Where to, and as what.
        use_safetensors: Upload safetensors (True), pickle files (False), which hubs may refuse, or "both".
        with_head: Upload the head too.
    Raises:
        HubError: the hub could not be reached, or refused.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_adapter(folder, name, use_safetensors=use_safetensors, with_head=with_head)
        head = folder / HEAD.config
        config = read_json(folder / ADAPTER.config)["config"]
        info = CardInfo(
            name=name,
            method=_method(config),
            config=config,
            head=read_json(head) if head.is_file() else None,
            parameters=next(row["#param"] for row in model.adapter_summary(as_dict=True) if row["name"] == name),
            **_about(model, push),
        )
        return _upload(info, folder, push, f"Upload adapter {name}", PARTS.__contains__)


def push_setup(model: Any, setup: Any, heads: Any, push: Push, use_safetensors: Files = True) -> CommitInfo:
    """Upload a composition with its adapters, fusions and heads.

    Args:
        model: The model.
        setup: A block, or an adapter's name.
        heads: Heads to upload, as `save_adapter_setup` takes them.
        push: Where to, and as what.
        use_safetensors: Upload safetensors (True), pickle files (False), which hubs may refuse, or "both".
    Raises:
        HubError: the hub could not be reached, or refused.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model.save_adapter_setup(folder, setup, heads, use_safetensors=use_safetensors)
        info = CardInfo(name=str(setup), is_setup=True, **_about(model, push))
        message = f"Upload adapter set-up {setup}"
        return _upload(info, folder, push, message, lambda p: p.count("/") <= 1 and p.rpartition("/")[2] in OURS)


def card_entries(given: Mapping[str, Any] | None, datasets: str | Sequence[str] | None = None) -> dict[str, Any]:
    """What a person says about an adapter, checked, with a list where a card has a list.

    Args:
        given: Entries for the card; `CARD_ENTRIES` are the possible ones.
        datasets: Data sets it was trained on.
    Raises:
        ConfigError: an entry is not known, or of another form.
    """
    entries = {**({"datasets": datasets} if datasets else {}), **(given or {})}
    for key in entries:
        if key not in CARD_ENTRIES:
            raise ConfigError(f"A card has no entry {key!r}. {choices(key, CARD_ENTRIES)}")
    for key in LISTS:
        if isinstance(entries.get(key), str):
            entries[key] = [entries[key]]
    results = entries.get("results")
    if results is not None and not isinstance(results, str):
        for result in results:
            if not isinstance(result, Mapping) or not {"dataset", "metric", "value"} <= result.keys():
                raise ConfigError(
                    f"A result for the card is {result!r}. Give text, or a list of dicts with 'dataset', 'metric', "
                    "'value' and, if you like, 'name', 'config', 'split' and 'task'."
                )
    return {key: value for key, value in entries.items() if value is not None}


def _about(model: Any, push: Push) -> dict[str, Any]:
    name = str(getattr(model.config, "name_or_path", ""))
    return {
        "repo_id": push.repo_id,
        "model_name": name if is_repo_id(name) and not os.path.exists(name) else None,
        "model_type": model.config.model_type,
        "model_class": class_of(model).__name__,
        "versions": {
            "adapters": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__.partition("+")[0],
        },
        "endpoint": None if session.is_public() else session.endpoint(),
        **card_entries(push.card, push.datasets_tag),
    }


def _method(config: Mapping[str, Any]) -> str:
    for name, known in ADAPTER_CONFIG_MAP.items():
        if json.loads(json.dumps(known.to_dict())) == config:
            return name
    return config.get("architecture") or "bottleneck"


def _upload(info: CardInfo, folder: Path, push: Push, message: str, owned: Callable[[str], bool]) -> CommitInfo:
    """Commit the files of `folder` and a card; files that are `owned` and not written any more are deleted."""
    api = session.api(push.token)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    with session.explained(f"Pushing to {push.repo_id}"), session.plain_uploads():
        repo_id, present = _prepare(api, push)
        info = replace(info, repo_id=repo_id)
        card = _card(info, push, CARD in present)
        if push.local_path is not None:
            with saving(push.local_path) as copy:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, file) for path, file in files.items()
        ]
        if card is not None:
            operations.append(CommitOperationAdd(CARD, card.encode()))
        stale = [path for path in present if owned(path) and path not in files]
        operations += [CommitOperationDelete(path) for path in stale]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=push.commit_message or message,
            commit_description=push.commit_description,
            revision=push.revision,
            create_pr=push.create_pr,
        )


def _prepare(api: HfApi, push: Push) -> tuple[str, list[str]]:
    """Make the repository and the branch if need be; the repository's whole id, and the files that are there.

    A bare name gets the name of whoever the token belongs to in front.
    """
    repo_id = api.create_repo(push.repo_id, private=push.private, exist_ok=True).repo_id
    if push.revision is not None and not push.revision.startswith("refs/"):
        api.create_branch(repo_id, branch=push.revision, exist_ok=True)
    return repo_id, api.list_repo_files(repo_id, revision=push.revision)


def _card(info: CardInfo, push: Push, exists: bool) -> str | None:
    """The card to upload: the one in `local_path`, else a new one; None where the hub keeps the one it has."""
    local = Path(push.local_path, CARD) if push.local_path is not None else None
    if local is not None and local.is_file() and not push.overwrite_card:
        return local.read_text(encoding="utf-8")
    if exists and not push.overwrite_card:
        return None
    card = render(info)
    if local is not None:
        make_folder(local.parent)
        local.write_text(card, encoding="utf-8")
    return card
