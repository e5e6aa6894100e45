"""The words by which people look for tasks, data sets, languages, models and methods, and what they mean by them."""

from __future__ import annotations

import difflib
import re
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice, takewhile
from typing import Any

from ..data import load
from ..methods import library
from . import configs
from .spelling import Spelling, most_typos
from .taxonomy import Taxonomy

__all__ = ["Concept", "Lexicon", "stem", "words_of"]

_LONGEST_PHRASE, _MOST_WORDS = 5, 12
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
        """The concepts that a phrase means: by its words as they are, else by their stems.

        A phrase means what has it for a name, or else, from four letters on, whose name begins with it. Of tasks, data
        sets and languages a later word of a name will do: an `adapter` or `bert` is not one of a kind.
        """
        return self._meant(phrase) or self._meant(stem(phrase))

    def _meant(self, phrase: str) -> tuple[Concept, ...]:
        numbers = self._by_name.get(phrase, ())
        if not numbers and len(phrase) >= _PREFIX:
            first = bisect_left(self._beginnings, (phrase,))
            begun = takewhile(lambda item: item[0].startswith(phrase), islice(self._beginnings, first, None))
            numbers = sorted({number for _, number in begun})
        return tuple(self.concepts[number] for number in numbers)

    @cached_property
    def _by_name(self) -> Mapping[str, Sequence[int]]:
        """Name to the concepts that have it."""
        found: dict[str, list[int]] = defaultdict(list)
        for number, concept in enumerate(self.concepts):
            for name in concept.names:
                found[name].append(number)
        return found

    @cached_property
    def _beginnings(self) -> Sequence[tuple[str, int]]:
        """What a phrase may begin, in order: names, and what is left of them after their first words."""
        found = set()
        for name, numbers in self._by_name.items():
            for number in numbers:
                words = name.split()
                count = 1 if self.concepts[number].kind in ("model", "method") else len(words)
                found |= {(" ".join(words[i:]), number) for i in range(count)}
        return sorted(found)

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(word for concept in self.concepts for name in concept.names for word in name.split())

    def mistyped(self, text: str) -> list[str]:
        """The words of a text that mean nothing and are long enough to have typos."""
        words = dict.fromkeys(words_of(text).split()[:_MOST_WORDS])
        return [word for word in words if most_typos(word) and not word.isdigit() and not self.meant(word)]

    def near_words(self, word: str) -> list[tuple[int, str]]:
        """The words of names that are a typo or two away from a word, with that number, the nearest first.

        One letter more, fewer, another, or two swapped are one typo; words of eight letters may have two.
        """
        return self._spelling.near(word)

    def near(self, text: str, count: int = 3) -> list[str]:
        """Names of concepts that are like a text."""
        labels = {name: concept.label for concept in self.concepts for name in concept.names}
        names = difflib.get_close_matches(words_of(text)[:100], list(labels), n=count, cutoff=0.7)
        return list(dict.fromkeys(labels[name] for name in names))


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
