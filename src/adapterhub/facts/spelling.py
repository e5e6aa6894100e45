"""Which known words somebody meant who mistyped one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

__all__ = ["SHORTEST", "Spelling", "deletions", "distance", "most_typos"]

SHORTEST = 4  # letters: shorter words have too many neighbours
_LONGEST = 30
_LONG = 8


def most_typos(word: str) -> int:
    """How many typos a word may have: one, from eight letters on two; none where it is very short or long."""
    return 0 if not SHORTEST <= len(word) <= _LONGEST else 2 if len(word) >= _LONG else 1


def deletions(word: str, most: int) -> set[str]:
    """A word, and what is left of it without up to `most` letters.

    Words that are `most` typos apart have one of these in common: one letter more, fewer, another, or two swapped.
    """
    found = last = {word}
    for _ in range(most):
        last = {word[:i] + word[i + 1 :] for word in last for i in range(len(word))}
        found = found | last
    return found


def distance(one: str, other: str, most: int) -> int:
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


class Spelling:
    """Known words, found by what is left of them without some letters: only those that are near are compared."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = list(dict.fromkeys(word for word in words if len(word) >= SHORTEST))
        self._left: dict[str, list[int]] = defaultdict(list)
        for number, word in enumerate(self._words):
            for left in deletions(word, 2):
                self._left[left].append(number)

    def near(self, word: str) -> list[tuple[int, str]]:
        """The known words that are as few typos away as it may have, with that number, the nearest first."""
        most = most_typos(word)
        if not most:
            return []
        numbers = sorted({number for left in deletions(word, most) for number in self._left.get(left, ())})
        found = [(distance(word, self._words[number], most), self._words[number]) for number in numbers]
        return sorted((item for item in found if item[0] <= most), key=lambda item: item[0])
