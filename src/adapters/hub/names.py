"""Which repository is meant by `@org/file`, `task/subtask@org`, `task/subtask` or `subtask`? The hub's index knows."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from adapters._version import __version__
from adapters.errors import CheckpointNotFound
from adapters.hub import session

logger = logging.getLogger(__name__)


class UnknownName(CheckpointNotFound):
    """The hub's index has nothing of this name."""


FORMS = "'org/name', '@org/file', 'task/subtask@org', 'task/subtask' or 'subtask'"


@dataclass(frozen=True)
class Found:
    """An adapter in the index.

    Args:
        id: Its repository.
        revision: The commit that is meant; None for the newest.
    """

    id: str
    revision: str | None


def is_repo_id(name: str) -> bool:
    """Whether a repository can be called so."""
    return re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) is not None and ".." not in name and "--" not in name


def resolve(
    name: str,
    model_name: str | None = None,
    config: str | None = None,
    version: str | None = None,
    token: str | bool | None = None,
) -> Found:
    """Ask the hub which adapter is meant. Without network, what it answered before counts.

    Args:
        name: In one of the forms `org/name`, `@org/file`, `task/subtask[@org]`, `task[@org]` and `subtask[@org]`.
        model_name: The base model.
        config: A config's name or its hash.
        version: Branch, tag or commit.
        token: Token of the hub.
    Raises:
        CheckpointNotFound: nothing has this name, or several adapters have; the message lists them.
    """
    hub = session.endpoint()
    if session.is_public():
        raise UnknownName(
            f"{name!r} is not the id of a repository. Names of tasks are looked up in the index of an AdapterHub, and "
            f"{hub} is none: choose one with adapters.hub.use('http://...') or HF_ENDPOINT, or pass 'org/name'."
        )
    given = {"name": name, "model": model_name, "config": config, "version": version}
    query = {key: value for key, value in given.items() if value}
    kept = _kept(query)
    try:
        answer = get_session().get(
            f"{hub}/api/v1/resolve",
            params=query,
            headers=build_hf_headers(
                token=session.credentials(token), library_name="adapters", library_version=__version__
            ),
            follow_redirects=False,
            timeout=constants.DEFAULT_REQUEST_TIMEOUT,
        )
        body, status = _content(answer), answer.status_code
    except (session.HTTPError, OSError) as error:
        body, status = _remembered(kept, name, error), 200
    else:
        if status >= 500:
            body, status = _remembered(kept, name, RuntimeError(f"it answered {status}")), 200
    if status != 200:
        raise (UnknownName if status == 404 else CheckpointNotFound)(_refusal(name, query, status, body))
    found = _checked(body, name)
    _keep(kept, body)
    return found


def _refusal(name: str, query: Mapping[str, str], status: int, body: Mapping[str, Any]) -> str:
    hub, details = session.endpoint(), body.get("details")
    body = {**(details if isinstance(details, Mapping) else {}), **body}
    asked = ", ".join(f"{key} {value!r}" for key, value in query.items() if key != "name")
    given = f"{name!r} ({asked})" if asked else repr(name)
    if candidates := body.get("candidates"):
        return (
            f"{given} can mean {len(candidates)} adapters on {hub}:\n{_lines(candidates)}\n"
            "Pass the id of one of them instead, or narrow the choice: model_name=..., config=..., '...@org'."
        )
    if near := body.get("near"):
        return f"There is no adapter {given} on {hub}. Near to it:\n{_lines(near)}\nNames have the forms {FORMS}."
    if status in (401, 403):
        return f"{hub} does not let you look up {given}: {body.get('error') or status} Log in: {session.LOGIN}"
    said = str(body.get("error") or f"it answered {status}").rstrip(".")
    return (
        f"There is no adapter {given} on {hub}: {said}. Names have the forms {FORMS}; "
        "adapters.list_adapters() lists what there is, and adapters.hub.use(...) chooses another hub."
    )


def _lines(entries: Iterable[Any]) -> str:
    return "\n".join(f"  {_line(entry)}" for entry in entries)


def _line(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return str(entry)
    own = entry.get("id") or entry.get("name") or entry.get("adapter_id")
    facts = [str(value) for key, value in entry.items() if key in FACTS and value and value != own]
    return f"{own} ({', '.join(facts)})" if facts else str(own)


FACTS = ("task", "subtask", "base_model", "model_name", "method", "config", "version", "revision", "score")
"""What is shown of a candidate besides its id, where the hub tells it."""


def _content(answer: Any) -> dict[str, Any]:
    try:
        content = answer.json()
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _checked(body: Mapping[str, Any], name: str) -> Found:
    found, revision = body.get("id"), body.get("revision") or None
    if not isinstance(found, str) or not is_repo_id(found) or not isinstance(revision, str | None):
        raise CheckpointNotFound(
            f"{session.endpoint()} gave no usable answer about {name!r}: {dict(body)!r}. Is it an AdapterHub?"
        )
    return Found(found, revision)


def _kept(query: Mapping[str, str]) -> Path:
    key = hashlib.sha256(json.dumps([session.endpoint(), query], sort_keys=True).encode()).hexdigest()[:32]
    return Path(session.cache_folder() or constants.HF_HUB_CACHE, ".resolved", f"{key}.json")


def _keep(path: Path, body: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(body), encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        logger.debug("The answer of the hub is not kept for work without network: %s", error)


def _remembered(path: Path, name: str, error: Exception) -> dict[str, Any]:
    try:
        body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointNotFound(
            f"{session.endpoint()} could not be asked which adapter {name!r} is: {session.reason(error)} "
            "Check the address and the network, or pass the path of a folder."
        ) from error
    if not constants.is_offline_mode():
        logger.warning("%s could not be asked about %r; what it answered last counts.", session.endpoint(), name)
    return body
