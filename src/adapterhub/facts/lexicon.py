"""The words by which people look for tasks, data sets, languages, models and methods, and what they mean by them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from ..data import load
from ..methods import library
from . import configs
from .taxonomy import Taxonomy

__all__ = ["Concept", "Lexicon", "stem", "words_of"]

_LONGEST_PHRASE, _MOST_WORDS = 5, 12
_LONGEST_WORD = 30  # with typos
_PREFIX = 4  # letters from which on the beginning of a name means it
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ENDINGS = (("ings", 4), ("ing", 4), ("ies", 3), ("ed", 4), ("es", 4), ("s", 3))  # and the letters that must be left


@dataclass(frozen=True)
class Concept:
    """Something that adapters are of or for.

    Attributes:
        kind: task, data set, language, model or method.
        label: its name on pages.
        names: its names, synonyms and abbreviations, as `words_of` spells them.
        tags: each of which an adapter of it has; none for a method.
        method: what the index calls it, for a method.
        config: the named config, where it is one of several of its method.
    """

    kind: str
    label: str
    names: tuple[str, ...]
    tags: tuple[str, ...] = ()
    method: str | None = None
    config: str | None = None

    @property
    def title(self) -> str:
        """Such as `data set SST-2`."""
        return f"{self.kind} {self.label}"

    def means(self, phrase: str) -> bool:
        """Whether a phrase is one of the names, or from four letters on the beginning of one.

        Of tasks, data sets and languages a later word of a name will do: an `adapter` or `bert` is not one of a kind.
        """
        if phrase in self.names:
            return True
        anywhere = self.kind not in ("model", "method")
        return len(phrase) >= _PREFIX and any(
            name.startswith(phrase) or (anywhere and f" {phrase}" in name) for name in self.names
        )


def words_of(text: str) -> str:
    """A text's words in lower case, with single spaces: `SST-2` is `sst 2`."""
    return " ".join(_WORD.findall(_marks_joined(text)))


def _marks_joined(text: str) -> str:
    """Lower case, with vowel signs of Indic scripts, which are no letters to `re`, made such by their composition."""
    return "".join(_PLAIN.get(unicodedata.category(c), c) for c in unicodedata.normalize("NFKD", text.lower()))


_PLAIN = {"Mn": "", "Mc": "", "Me": "", "Cf": ""}


def stem(word: str) -> str:
    """A word without its ending: `reviews` and `review` are the same, as are `answering` and `answers`."""
    for ending, left in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= left and not word.endswith("ss"):
            return word.removesuffix(ending)
    return word


class Lexicon:
    """All concepts, found by phrases."""

    def __init__(self, concepts: Iterable[Concept]) -> None:
        self.concepts = tuple(concepts)

    @classmethod
    @cache
    def packaged(cls) -> Lexicon:
        """That of the taxonomy, the models and the methods that come with the hub."""
        return cls(_concepts())

    def phrases(self, text: str) -> list[tuple[str, tuple[Concept, ...]]]:
        """A text cut into phrases with what each means, the longest that mean something; other words mean nothing."""
        words, found = text.split(), []
        while words:
            for count in range(min(len(words), _LONGEST_PHRASE), 0, -1):
                meant = self.meant(words_of(" ".join(words[:count])))
                if meant or count == 1:
                    found.append((" ".join(words[:count]), meant))
                    del words[:count]
                    break
        return found

    def meant(self, phrase: str) -> tuple[Concept, ...]:
        """The concepts that a phrase means: by its words as they are, else by their stems."""
        return self._meant(phrase) or self._meant(stem(phrase))

    def _meant(self, phrase: str) -> tuple[Concept, ...]:
        if not phrase:
            return ()
        exact = tuple(concept for concept in self.concepts if phrase in concept.names)
        return exact or tuple(concept for concept in self.concepts if concept.means(phrase))

    @cached_property
    def _vocabulary(self) -> Mapping[str, None]:
        words = (word for concept in self.concepts for name in concept.names for word in name.split())
        return dict.fromkeys(word for word in words if len(word) >= _PREFIX)

    def corrected(self, text: str) -> str:
        """A text with each word that means nothing replaced by a known one that is a typo or two away.

        One letter more, fewer, another, or two swapped are one typo; words of eight letters may have two.
        """
        right = []
        for word in words_of(text).split()[:_MOST_WORDS]:
            near = None
            if _PREFIX <= len(word) <= _LONGEST_WORD and not self.meant(word):
                most = 2 if len(word) >= 8 else 1
                ranked = [(_distance(word, known, most), known) for known in self._vocabulary]
                near = min((item for item in ranked if item[0] <= most), default=None, key=lambda item: item[0])
            right.append(near[1] if near else word)
        return " ".join(right)

    def near(self, text: str, count: int = 3) -> list[str]:
        """Names of concepts that are like a text."""
        labels = {name: concept.label for concept in self.concepts for name in concept.names}
        names = difflib.get_close_matches(words_of(text)[:100], list(labels), n=count, cutoff=0.7)
        return list(dict.fromkeys(labels[name] for name in names))


def _distance(one: str, other: str, most: int) -> int:
    """How many letters must be added, left out, replaced or swapped with the next; `most` + 1 for more than `most`."""
    if abs(len(one) - len(other)) > most:
        return most + 1
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        last, before, row = before, row, [i]
        for j, b in enumerate(other, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return most + 1
    return min(row[-1], most + 1)


# ---- the concepts that come with the hub ----------------------------------------------------------------------------


def _concepts() -> Iterator[Concept]:
    taxonomy, more = Taxonomy.packaged(), load("synonyms.json")
    for task, row in taxonomy.tasks.items():
        is_language = row["type"] == "text_lang"
        places = [f"{task}/{subtask}" for over, subtask in taxonomy.subtasks if over == task]
        tags = [f"adapterhub:{place}" for place in (task, *places)]
        others = more["languages" if is_language else "tasks"].get(task, [])
        kind, tags = ("language", [task, *tags]) if is_language else ("task", tags)
        yield Concept(kind, row["displayname"], _names(task, row["displayname"], *others), tuple(tags))
    for (task, subtask), row in taxonomy.subtasks.items():
        if row["type"] == "text_lang":
            continue
        dataset = row["datasets_id"]
        names = _names(subtask, row["displayname"], dataset, *more["subtasks"].get(f"{task}/{subtask}", ()))
        tags = [f"adapterhub:{task}/{subtask}", *([f"dataset:{dataset}"] if dataset else [])]
        yield Concept("data set", row["displayname"] or subtask, names, tuple(tags))
    for model, others in more["models"].items():
        # The words of its name are found there; here they would mean other models less.
        yield Concept("model", model, _names(*others), (f"base_model:{model}", *_with_owner(model)))
    for preset in library().presets.values():
        names = _names(preset.name, preset.title, *preset.aliases, *more["methods"].get(preset.name, ()))
        method = configs.method(preset.config)
        yield Concept("method", preset.title, names, (), method, preset.name if preset.name != method else None)


def _with_owner(model: str) -> tuple[str, ...]:
    """The tag of a model's name as it stands on the Hugging Face hub today, where it once had no owner."""
    owner = next((owner for part, owner in _OWNERS.items() if model.startswith(part)), None)
    return (f"base_model:{owner}/{model}",) if owner else ()


_OWNERS = {"bert-": "google-bert", "distilbert-": "distilbert", "xlm-roberta-": "FacebookAI"}


def _names(*names: Any) -> tuple[str, ...]:
    """Names as `words_of` spells them, also those of several short parts written as one word: `sst 2` and `sst2`."""
    spelled = [words_of(name) for name in names if name]
    joined = [name.replace(" ", "") for name in spelled if len(name) <= 12 and any(map(str.isdigit, name))]
    return tuple(dict.fromkeys(name for name in (*spelled, *joined) if name))
