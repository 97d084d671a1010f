"""Slips within one word that a reader hardly notices: what a search for the worst of them may choose from.

The kinds are TextBugger's (Li et al. 2018, arXiv 1812.05271) and DeepWordBug's (Gao et al. 2018, arXiv 1801.04354): two letters
swapped, one left out, one of a neighbouring key, one that looks alike. The first and the last letter stay, except for a letter
that looks alike, because readers recognise a word by them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from random import Random

from edgekit.data.noise import KEYBOARD, LOOKALIKES

SHORTEST = 4
_WORD = re.compile(r"([^\W\d_]+)")


def pieces(text: str) -> list[str]:
    """`text` cut into words, at the odd places, and what is between them, at the even ones."""
    return _WORD.split(text)


def vocabulary(texts: Iterable[str]) -> frozenset[str]:
    """All words of `texts`, in lower case: a slip must not make another of them."""
    return frozenset(word.lower() for text in texts for word in pieces(text)[1::2])


def bugs(word: str, random: Random, words: Collection[str]) -> list[str]:
    """At most four slips of `word`, one of each kind at a drawn place; none that is among `words`."""
    kinds = (_swaps(word), _deletions(word), _neighbours(word), _lookalikes(word))
    found = [random.choice(kind) for kind in kinds if kind]
    return [bug for bug in dict.fromkeys(found) if bug != word and bug.lower() not in words]


def _swaps(word: str) -> Sequence[str]:
    return [word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in range(1, len(word) - 2)]


def _deletions(word: str) -> Sequence[str]:
    return [word[:at] + word[at + 1 :] for at in range(1, len(word) - 1)]


def _neighbours(word: str) -> Sequence[str]:
    return [
        word[:at] + letter + word[at + 1 :]
        for at in range(1, len(word) - 1)
        for row in KEYBOARD
        if (key := row.find(word[at])) >= 0
        for letter in row[max(key - 1, 0) : key] + row[key + 1 : key + 2]
    ]


def _lookalikes(word: str) -> Sequence[str]:
    return [
        word[:at] + LOOKALIKES[letter] + word[at + 1 :]
        for at, letter in enumerate(word)
        if letter in LOOKALIKES
    ]
