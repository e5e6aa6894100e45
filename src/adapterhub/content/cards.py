"""Model cards: the YAML in front and the Markdown behind it, read without trust.

YAML is read so that nothing is lost: a number is a number only where writing it again gives the same text, so `1.10`
stays a text, as do dates; and `no` is a language, not a truth value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError, YAMLError

__all__ = [
    "Card",
    "InvalidCard",
    "Result",
    "adapterhub_place",
    "as_list",
    "base_models",
    "datasets",
    "languages",
    "license",
    "parse",
    "relation",
    "results",
    "summary",
    "title",
    "words",
]

MAX_FRONT_MATTER = 64 << 10
MAX_ALIASES = 100
MAX_DEPTH = 20
MAX_NODES = 20_000  # after aliases are followed


class InvalidCard(ValueError):
    """The front matter cannot be read.

    Args:
        message: what is wrong.
        line: the line of the card, from 1 on, if it is known.
    """

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(f"Line {line} of the card: {message}" if line else message)
        self.line = line


@dataclass(frozen=True)
class Card:
    """A card: its front matter, and the Markdown behind it."""

    data: dict[str, Any] = field(default_factory=dict)
    body: str = ""


class Result(NamedTuple):
    """One number that a card reports."""

    task: str | None
    dataset: str | None  # its id, with the configuration: `glue/sst2`
    split: str | None
    metric: str
    value: float


# ---- front matter ---------------------------------------------------------------------------------------------------


def parse(text: str) -> Card:
    """The card that a README is; without front matter, its data are empty.

    Raises:
        InvalidCard: the front matter is not closed, too large, or not YAML that maps names to values.
    """
    text = text.removeprefix("\ufeff")
    opening = _OPENING.match(text)
    if opening is None:
        return Card({}, text)
    closing = _CLOSING.search(text, opening.end() - 1)
    if closing is None:
        raise InvalidCard("the front matter begins with '---' but does not end with a line '---'.", 1)
    yaml = text[opening.end() : closing.start() + 1]
    if len(yaml.encode("utf-8", "surrogatepass")) > MAX_FRONT_MATTER:
        raise InvalidCard(f"the front matter is larger than {MAX_FRONT_MATTER >> 10} KiB.", 1)
    return Card(_Reader(yaml, first_line=text.count("\n", 0, opening.end()) + 1).mapping(), text[closing.end() :])


_OPENING = re.compile(r"\s*?---[ \t]*\r?\n")
_CLOSING = re.compile(r"\n---[ \t]*(?:\r?\n|\Z)")


class _Reader:
    """Builds values from the events of a YAML parser, counting what could grow."""

    def __init__(self, text: str, first_line: int) -> None:
        self.first_line = first_line
        self.anchors: dict[str, tuple[Any, int]] = {}  # the value and how many nodes are in it
        self.aliases = self.nodes = 0
        self.events = self._events(text)

    def _events(self, text: str) -> Iterator[Any]:
        yaml = YAML(typ="safe", pure=True)
        yaml.version = (1, 2)
        try:
            yield from yaml.parse(text)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = error.problem or error.context or "it is not YAML"
            raise InvalidCard(f"{problem}.", self.first_line + mark.line if mark else None) from None
        except YAMLError as error:
            raise InvalidCard(f"the front matter is not YAML: {str(error).splitlines()[0]}.") from None

    def mapping(self) -> dict[str, Any]:
        """The one document, which must be a mapping, or nothing."""
        value: Any = None
        documents = 0
        for event in self.events:
            if isinstance(event, events.DocumentStartEvent):
                documents += 1
                value = self._value(next(self.events), 1)
        if value is None and documents <= 1:
            return {}
        if not isinstance(value, dict) or documents > 1:
            raise InvalidCard("the front matter must map names to values, such as 'license: mit'.", self.first_line)
        return value

    def _value(self, event: Any, depth: int) -> Any:
        line = self.first_line + event.start_mark.line
        if depth > MAX_DEPTH:
            raise InvalidCard(f"values are nested more than {MAX_DEPTH} deep.", line)
        if isinstance(event, events.AliasEvent):
            return self._alias(event, line)
        before = self.nodes
        self._count(1, line)
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            raise InvalidCard(f"the tag {str(event.tag)!r} is not allowed: write plain values.", line)
        value: Any
        if isinstance(event, events.ScalarEvent):
            plain = event.implicit[0] and event.tag is None
            value = _scalar(event.value) if plain else event.value
        elif isinstance(event, events.SequenceStartEvent):
            value = [self._value(item, depth + 1) for item in self._until(events.SequenceEndEvent)]
        else:
            value = self._pairs(depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.nodes - before)
        return value

    def _pairs(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in self._until(events.MappingEndEvent):
            line = self.first_line + event.start_mark.line
            if not isinstance(event, events.ScalarEvent):
                raise InvalidCard("a name must be a text.", line)
            if event.value in found:
                raise InvalidCard(f"{event.value[:80]!r} stands here twice.", line)
            found[event.value] = self._value(next(self.events), depth + 1)
        return found

    def _until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self.events), end):
            yield event

    def _alias(self, event: Any, line: int) -> Any:
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            raise InvalidCard(f"there are more than {MAX_ALIASES} aliases ('*name').", line)
        if event.anchor not in self.anchors:
            raise InvalidCard(f"the alias '*{event.anchor}' refers to nothing above it.", line)
        value, nodes = self.anchors[event.anchor]
        self._count(nodes, line)
        return value

    def _count(self, nodes: int, line: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise InvalidCard(f"there are more than {MAX_NODES} values.", line)


_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def _scalar(text: str) -> Any:
    """The value of a plain scalar, if it can be written again as the same text."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for read in (int, float):
        try:
            value: float = read(text) if len(text) <= 18 else math.nan
        except ValueError:
            continue
        if math.isfinite(value) and str(value) == text:
            return value
    return text


# ---- what cards say -------------------------------------------------------------------------------------------------


def as_list(value: Any) -> list[str]:
    """The texts of a field that may hold one, several or none."""
    items = value if isinstance(value, list) else [value]
    return [str(item) for item in items if isinstance(item, (str, int, float)) and str(item).strip()]


def license(card: Card) -> str | None:
    """The licence's id; for `other`, the name the card gives it."""
    found = as_list(card.data.get("license"))
    name = as_list(card.data.get("license_name"))
    return (name or found)[0] if found[:1] == ["other"] else next(iter(found), None)


def languages(card: Card) -> list[str]:
    """The codes of its languages."""
    return as_list(card.data.get("language")) or as_list(card.data.get("languages"))


def datasets(card: Card) -> list[str]:
    """The ids of the data sets it was trained on."""
    return as_list(card.data.get("datasets"))


def base_models(card: Card) -> list[str]:
    """The models it belongs to; most cards name one."""
    return as_list(card.data.get("base_model"))


def relation(card: Card) -> str:
    """What it is to its base model: `adapter` unless the card says otherwise."""
    return next(iter(as_list(card.data.get("base_model_relation"))), "adapter")


def adapterhub_place(card: Card) -> tuple[str | None, str | None]:
    """Task and subtask of its tag `adapterhub:<task>/<subtask>`."""
    for tag in as_list(card.data.get("tags")):
        prefix, colon, place = tag.partition(":")
        if prefix == "adapterhub" and colon and place.strip("/ "):
            task, _, subtask = place.strip("/ ").partition("/")
            return task.strip(), subtask.strip() or None
    return None, None


def results(card: Card, problems: list[str] | None = None) -> list[Result]:
    """The numbers in `model-index`, and in our shorter list:

    ```yaml
    results:
    - {dataset: glue/sst2, split: validation, metric: accuracy, value: 0.93}
    ```

    Args:
        problems: gets a sentence for each entry that is left out because it cannot be understood.
    """
    problems = [] if problems is None else problems
    rows = [*_short_results(card.data.get("results"), problems), *_model_index(card.data.get("model-index"), problems)]
    found = []
    for where, row in rows:
        metric, value = next(iter(as_list(row.get("metric"))), ""), _number(row.get("value"))
        if not metric or value is None:
            problems.append(f"{where} must have a 'metric' and a number as 'value', but has {_shown(row)}.")
            continue
        task, dataset, split = (next(iter(as_list(row.get(key))), None) for key in ("task", "dataset", "split"))
        found.append(Result(task, dataset, split, metric, value))
    return list(dict.fromkeys(found))


_Row = tuple[str, Mapping[str, Any]]


def _short_results(value: Any, problems: list[str]) -> Iterator[_Row]:
    yield from _mappings(value, "results", problems)


def _model_index(value: Any, problems: list[str]) -> Iterator[_Row]:
    for where, model in _mappings(value, "model-index", problems):
        for at, result in _mappings(model.get("results"), f"{where}.results", problems):
            task, dataset = (part if isinstance(part, dict) else {} for part in map(result.get, ("task", "dataset")))
            name = dataset.get("type") or dataset.get("name")
            config = dataset.get("config") or dataset.get("args")
            shared = {
                "task": task.get("type"),
                "dataset": f"{name}/{config}" if name and isinstance(config, str) and config != "default" else name,
                "split": dataset.get("split"),
            }
            for place, metric in _mappings(result.get("metrics"), f"{at}.metrics", problems):
                named = metric.get("type") or metric.get("name")
                yield place, {**shared, "metric": named, "value": metric.get("value")}


def _mappings(value: Any, where: str, problems: list[str]) -> Iterator[_Row]:
    """The members of a list that are mappings, each with its place."""
    if value is None:
        return
    if not isinstance(value, list):
        problems.append(f"'{where}' must be a list.")
        return
    for i, item in enumerate(value):
        if isinstance(item, dict):
            yield f"{where}[{i}]", item
        else:
            problems.append(f"{where}[{i}] must map names to values, but is {str(item)[:40]!r}.")


def _number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shown(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {str(row.get(key))[:40]}" for key in ("metric", "value"))


# ---- what the Markdown says -----------------------------------------------------------------------------------------

_BEGINNING = 4 << 10  # of the Markdown: the title and the first sentence stand there
_MARKDOWN = MarkdownIt("commonmark", {"maxNesting": 10}).enable("table")
_SENTENCE_END = re.compile(r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\betc\.)(?<!\bvs\.)(?<=[.!?])\s+(?=[^a-z\s])")
_LONGEST = 300
_SEARCHED = 16_000
_FENCED = re.compile(r"^ {0,3}(```|~~~).*?(?:^ {0,3}\1|\Z)", re.MULTILINE | re.DOTALL)
_MARKUP = re.compile(r"<[^<>]{0,300}>|[*_`#|>\[\]()\\\"“”]+")


def title(body: str) -> str:
    """The text of its first heading; empty if there is none."""
    return next(_texts(body, "heading_open"), "")[:200]


def summary(body: str) -> str:
    """The first sentence of its first paragraph that has words."""
    sentence = _SENTENCE_END.split(next(_texts(body, "paragraph_open"), ""), maxsplit=1)[0]
    return sentence if len(sentence) <= _LONGEST else sentence[:_LONGEST].rsplit(" ", 1)[0] + " …"


def words(body: str) -> str:
    """The words of its first 16,000 characters, each once: those of the text, not of code that is fenced off."""
    text = _FENCED.sub(" ", body[:_SEARCHED])
    return " ".join(dict.fromkeys(_MARKUP.sub(" ", text).lower().split()))


def _texts(body: str, kind: str) -> Iterator[str]:
    """The plain texts of the blocks of a kind that are not inside another one."""
    tokens = _MARKDOWN.parse(body[:_BEGINNING])
    for token, inline in pairwise(tokens):
        if token.type == kind and token.level == 0:
            text = " ".join("".join(map(_plain, inline.children or [])).split())
            if any(character.isalpha() for character in text):
                yield text


def _plain(token: Token) -> str:
    if token.type in ("softbreak", "hardbreak"):
        return " "
    return token.content if token.type in ("text", "code_inline", "text_special") else ""
