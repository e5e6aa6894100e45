"""What adapters does the hub have?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from huggingface_hub import ModelInfo, constants, get_session
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from adapters._version import __version__
from adapters.checkpoint.layout import ADAPTER, read_json
from adapters.errors import HubError
from adapters.hub import session
from adapters.hub.download import fetch
from adapters.hub.names import UnknownName, is_repo_id, resolve
from adapters.methods import presets
from adapters.methods.config import AdapterConfig

TAGS = ("adapters", "adapter-transformers")
"""Either tag marks a repository with an adapter, the second one since longer."""
TASK_TAG = "adapterhub:"


@dataclass
class AdapterInfo:
    """An adapter on a hub.

    Args:
        source: How it is stored: "hf", a repository.
        adapter_id: Its id, for `load_adapter`.
        model_name: The base model.
        task: Task or language.
        subtask: Data set or domain.
        username: Who it belongs to.
        adapter_config: The config; `list_adapters` leaves it out.
        sha1_checksum: The commit it was read from.
    """

    source: str
    adapter_id: str
    model_name: str | None = None
    task: str | None = None
    subtask: str | None = None
    username: str | None = None
    adapter_config: dict[str, Any] | None = None
    sha1_checksum: str | None = None


def list_adapters(
    model_name: str | None = None,
    task: str | None = None,
    author: str | None = None,
    search: str | None = None,
    limit: int | None = None,
    token: str | bool | None = None,
    fits: str | None = None,
) -> list[AdapterInfo]:
    """Adapters of the hub in use, sorted by id; with `fits` the best or most used first.

    Args:
        model_name: Only those for this base model.
        task: Only those for a "task", "task/subtask" or language.
        author: Only those of this user or organisation.
        search: Only those that fit these words. A hub of `adapterhub` looks in names, titles and tags, and knows names,
            synonyms and abbreviations of tasks, data sets, languages, models and methods; others look in names.
        limit: At most so many.
        token: Token of the hub.
        fits: Only those that load into this base model: made for it, or for another of its type and sizes. For a task
            "task/subtask" the best come first, by the scores that their cards report. Only a hub of `adapterhub` knows.
    Raises:
        HubError: the hub could not be asked, or does not know what fits.
    """
    if fits is not None:
        infos = _fitting({"fits": fits, "namespace": author, "q": search}, task, token)
        return list(islice(_selected(infos, model_name, task), limit))
    with session.explained("Listing adapters"):
        found = {model.id: model for tag in TAGS for model in _models(tag, author, search, token)}
    infos = (_info(found[name]) for name in sorted(found))
    return list(islice(_selected(infos, model_name, task), limit))


def get_adapter_info(
    adapter_id: str, revision: str | None = None, token: str | bool | None = None
) -> AdapterInfo | None:
    """An adapter of the hub in use, with its config; None if there is none of this name.

    Args:
        adapter_id: "org/name", or another form that `load_adapter` takes.
        revision: Branch, tag or commit.
        token: Token of the hub.
    Raises:
        HubError: the hub could not be asked.
        CheckpointNotFound: several adapters have this name; the message lists them.
    """
    with session.explained(f"Looking up {adapter_id!r}"):
        model = _model(adapter_id, revision, token)
    if model is None:
        return None
    info = _info(model)
    if ADAPTER.config in [file.rfilename for file in model.siblings or ()]:
        stored = _stored(model.id, model.sha, token)
        info.adapter_config = _config(stored)
        info.model_name = info.model_name or stored.get("model_name") or stored.get("base_model_name_or_path")
    elif not set(TAGS) & set(model.tags or ()):
        return None
    return info


def _model(name: str, revision: str | None, token: str | bool | None) -> ModelInfo | None:
    api = session.api(token)
    if is_repo_id(name):
        try:
            return api.model_info(name, revision=revision)
        except RepositoryNotFoundError:
            if session.is_public():
                return None
    try:
        found = resolve(name, version=revision, token=token)
    except UnknownName:
        return None
    return api.model_info(found.id, revision=found.revision)


def _stored(repo: str, commit: str | None, token: str | bool | None) -> dict[str, Any]:
    folder = fetch(repo, commit, lambda *_: [ADAPTER.config], [ADAPTER.config], token=token)
    return read_json(folder / ADAPTER.config)


def _config(stored: dict[str, Any]) -> dict[str, Any]:
    if "config" not in stored:
        return stored  # PEFT's
    config = presets.load(stored["config"]) if isinstance(stored["config"], str) else stored["config"]
    return dict(config.to_dict() if isinstance(config, AdapterConfig) else config or {})


def _models(tag: str, author: str | None, search: str | None, token: str | bool | None) -> Iterable[ModelInfo]:
    options: dict[str, Any] = {"author": author, "search": search, "full": True, "cardData": True, "fetch_config": True}
    return session.api(token).list_models(filter=tag, **options)


def _fitting(query: Mapping[str, str | None], task: str | None, token: str | bool | None) -> Iterator[AdapterInfo]:
    """What the hub's own API finds, in its order, page by page."""
    place, slash, subtask = (task or "").partition("/")
    if session.is_public():
        raise HubError(
            f"{session.endpoint()} does not tell what fits a model: choose a hub of `adapterhub` with "
            "adapters.hub.use('http://...'), or pass model_name= instead of fits=."
        )
    given = {**query, **({"task": place, "subtask": subtask} if slash else {}), "limit": "100"}
    headers = build_hf_headers(token=session.credentials(token), library_name="adapters", library_version=__version__)
    cursor: str | None = ""
    while cursor is not None:
        params = {key: value for key, value in {**given, "cursor": cursor}.items() if value}
        with session.explained("Listing adapters"):
            answer = get_session().get(
                f"{session.endpoint()}/api/v1/adapters",
                params=params,
                headers=headers,
                timeout=constants.DEFAULT_REQUEST_TIMEOUT,
            )
            hf_raise_for_status(answer)
            page = answer.json()
        for row in page["adapters"]:
            facts = (row["base_model"], row["task"], row["subtask"], row["id"].partition("/")[0])
            yield AdapterInfo("hf", row["id"], *facts, None, row["revision"])
        cursor = page["cursor"]


def _info(model: ModelInfo) -> AdapterInfo:
    task, _, subtask = _after(model.tags, TASK_TAG).partition("/")
    username = model.author or (model.id.partition("/")[0] if "/" in model.id else None)
    return AdapterInfo("hf", model.id, _base_model(model), task or None, subtask or None, username, None, model.sha)


def _base_model(model: ModelInfo) -> str | None:
    config: Mapping[str, Any] = model.config or {}
    for key in ("adapters", "adapter_transformers"):
        if (stored := config.get(key)) and stored.get("model_name"):
            return str(stored["model_name"])
    named: Any = getattr(model.card_data, "base_model", None)
    named = named[0] if isinstance(named, list) and named else named
    return named or _after(model.tags, "base_model:adapter:") or _after(model.tags, "base_model:") or None


def _after(tags: Iterable[str] | None, prefix: str) -> str:
    return next((tag[len(prefix) :] for tag in tags or () if tag.startswith(prefix)), "")


def _selected(infos: Iterable[AdapterInfo], model_name: str | None, task: str | None) -> Iterator[AdapterInfo]:
    for info in infos:
        if model_name is not None and not _same_model(info.model_name, model_name):
            continue
        if task is not None and task not in (info.task, info.subtask, f"{info.task}/{info.subtask}"):
            continue
        yield info


def _same_model(one: str | None, other: str) -> bool:
    """Equal, where one of them may lack the namespace that models had none of in the past."""
    if one is None or one == other:
        return one == other
    return one.rpartition("/")[2] == other.rpartition("/")[2] and "/" not in min(one, other, key=lambda n: n.count("/"))
