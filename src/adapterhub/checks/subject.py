"""What is checked: the files of a commit, read once, and the facts about the rest of the hub."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..content import cards
from ..content.cards import Card, InvalidCard
from ..errors import HubError
from ..facts.configs import find_named
from ..settings import MiB
from . import finite, peft, tensors
from .tensors import Comparison, Header

if TYPE_CHECKING:
    from ..repos.files import Files

__all__ = ["CARD", "CONFIG", "FINITE_LIMIT", "HEAD", "Adapter", "CheckContext", "Header", "Subject", "gather"]

CARD, CONFIG, HEAD = "README.md", "adapter_config.json", "head_config.json"
WEIGHTS = ("adapter.safetensors", "adapter_model.safetensors")
HEAD_WEIGHTS = "model_head.safetensors"
FINITE_LIMIT = 64 * MiB  # of weights whose numbers are looked at
_MAX_ADAPTERS = 50
_LIBRARIES = frozenset(("adapters", "adapter-transformers", "peft"))


@dataclass(frozen=True)
class CheckContext:
    """What the checks must know of the rest of the hub.

    Attributes:
        tasks: the taxonomy: task to subtasks.
        metrics: known metrics: name to lowest and highest value, None where there is no bound.
        known_repos: which of the repositories that a card depends on are here: names in lower case, or `@org/file`.
        similar_names: other people's repositories whose names look like this one's.
        used_bytes: what the namespace keeps on this hub.
        quota: what it may keep.
    """

    tasks: Mapping[str, Collection[str]] = field(default_factory=dict)
    metrics: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    known_repos: Collection[str] = frozenset()
    similar_names: Sequence[str] = ()
    used_bytes: int = 0
    quota: int | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder of the repository; most stand in the root.

    Attributes:
        folder: its path with a slash at the end; empty for the root.
        config: what is in `adapter_config.json`; None where it is not a JSON object.
        problem: why it cannot be read.
        weights: path of its tensors, if there are any.
        tensors: their names, types and shapes; None where there are none that can be read.
        head: what is in `head_config.json`; None where there is none that can be read.
        head_tensors: the tensors of the head; None where there are none.
        not_finite: names of tensors that hold NaN or infinity; None where they were not looked at.
    """

    folder: str
    config: Mapping[str, Any] | None
    problem: str = ""
    weights: str | None = None
    tensors: Header | None = None
    head: Mapping[str, Any] | None = None
    head_tensors: Header | None = None
    not_finite: Sequence[str] | None = None

    @property
    def is_peft(self) -> bool:
        """Whether PEFT wrote it."""
        return bool(self.config and self.config.get("peft_type"))

    @property
    def inner(self) -> Mapping[str, Any]:
        """The config of the method: that of an adapter of ours lies one level deeper than PEFT's."""
        config = self.config or {}
        found = config if self.is_peft else config.get("config")
        if isinstance(found, str):
            found = find_named(found)
        return found if isinstance(found, dict) else {}

    @cached_property
    def comparison(self) -> Comparison:
        """How its tensors differ from what its config makes."""
        config, found = self.config or {}, self.tensors or {}
        if self.is_peft:
            return peft.compare(config, found)
        name, hidden, model_type = (config.get(key) for key in ("name", "hidden_size", "model_type"))
        return tensors.compare(
            self.inner,
            found,
            name=name if isinstance(name, str) else None,
            hidden=hidden if isinstance(hidden, int) and hidden > 0 else None,
            model_type=str(model_type or ""),
            # Old task adapters were saved without the invertible adapter of the language that they stand on.
            may_lack=("invertible_adapters",) if config.get("type") == "text_task" else (),
        )


@dataclass(frozen=True)
class Subject:
    """A commit to check.

    Attributes:
        sizes: path to bytes.
        card: its card; None where there is none that can be read.
        card_problem: why it cannot be read.
        headers: the tensors of each safetensors file; None where the file is not valid.
        adapters: the adapters in it.
        context: the rest of the hub.
    """

    sizes: Mapping[str, int]
    card: Card | None
    card_problem: str
    headers: Mapping[str, Header | None]
    adapters: Sequence[Adapter]
    context: CheckContext

    @property
    def is_adapter(self) -> bool:
        """Whether it holds an adapter, or its card says so."""
        return bool(self.adapters) or (self.card is not None and says_adapter(self.card))


def says_adapter(card: Card) -> bool:
    """Whether a card is that of an adapter."""
    data = card.data
    named = {name.lower() for name in (*cards.as_list(data.get("tags")), *cards.as_list(data.get("library_name")))}
    placed = any(tag.startswith("adapterhub:") for tag in named)
    return placed or bool(named & _LIBRARIES) or data.get("base_model_relation") == "adapter"


async def gather(files: Files, context: CheckContext) -> Subject:
    """Reads what the checks need."""
    paths = files.manifest
    headers = {path: _header(await files.header(path)) for path in paths if path.endswith(".safetensors")}
    card, problem = await _card(files)
    places = [path for path in paths if PurePosixPath(path).name == CONFIG][:_MAX_ADAPTERS]
    adapters, left = [], FINITE_LIMIT
    for path in places:
        adapter = await _adapter(files, path, headers, left)
        adapters.append(adapter)
        if adapter.not_finite is not None and adapter.weights:
            left -= paths[adapter.weights].size
    sizes = {path: entry.size for path, entry in paths.items()}
    return Subject(sizes, card, problem, headers, adapters, context)


async def _adapter(files: Files, path: str, headers: Mapping[str, Header | None], limit: int) -> Adapter:
    folder = path.removesuffix(CONFIG)
    config, problem = await _object(files, path)
    head, _ = await _object(files, folder + HEAD)
    weights = next((folder + name for name in WEIGHTS if folder + name in files.manifest), None)
    bad = None
    if weights is not None and headers[weights] is not None and files.manifest[weights].size <= limit:
        data = await _read(files, weights, limit)
        bad = None if data is None else await asyncio.to_thread(finite.not_finite, data)
    return Adapter(
        folder,
        config,
        problem,
        weights,
        headers.get(weights) if weights else None,
        head,
        headers.get(folder + HEAD_WEIGHTS),
        bad,
    )


def _header(found: Mapping[str, Any] | None) -> Header | None:
    return None if found is None else {name: (str(dtype), tuple(shape)) for name, (dtype, shape) in found.items()}


async def _card(files: Files) -> tuple[Card | None, str]:
    if CARD not in files.manifest:
        return None, ""
    data = await _read(files, CARD, 2 * MiB)
    if data is None:
        return None, f"{CARD} is larger than 2 MiB."
    try:
        return cards.parse(data.decode()), ""
    except InvalidCard as error:
        return None, str(error)
    except UnicodeDecodeError as error:
        return None, f"{CARD} is not text in UTF-8: byte {error.start} cannot be read."


async def _object(files: Files, path: str) -> tuple[dict[str, Any] | None, str]:
    """The object in a JSON file, or why there is none."""
    if path not in files.manifest:
        return None, ""
    data = await _read(files, path, 2 * MiB)
    if data is None:
        return None, f"{path} is larger than 2 MiB, or was not given."
    try:
        value = json.loads(data)
    except RecursionError:
        return None, f"{path} is nested too deeply."
    except ValueError as error:
        return None, f"{path} is not JSON: {error}."
    return (value, "") if isinstance(value, dict) else (None, f"{path} must be a JSON object.")


async def _read(files: Files, path: str, limit: int) -> bytes | None:
    """The bytes of a file; None where they are too many, or not here yet, as in a dry run."""
    try:
        return await files.read(path, limit)
    except HubError:
        return None
