"""Words of a question that may change without asking for another answer: names, pronouns, British and American spellings.

A model whose answer changes with them treats people unequally, or has learned a word instead of the task (Kusner et al. 2017,
arXiv 1703.06856; Ribeiro et al. 2020, CheckList, arXiv 2005.04118). Words that also stand in the row's answer are left alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from random import Random
from typing import Any

from edgekit.data.bugs import pieces
from edgekit.data.noise import asked, last_question, words_of_answer
from edgekit.data.rows import Row


@dataclass(frozen=True)
class Swap:
    """One kind of words; `other` is the word in place of the one at a place of cut text, or None for any other word."""

    name: str
    about: str
    other: Callable[[Sequence[str], int, Random], str | None]


@dataclass(frozen=True)
class Swapped:
    """A row with other words in its last question, and the pairs of the words before and after."""

    row: Row
    words: tuple[tuple[str, str], ...]


def swapped(row: Row, kind: str, seed: int) -> Swapped | None:
    """The row with its words of one kind swapped, the same for the same seed; None if it has none.

    A word that occurs twice gets the same one. Capital letters stay as they are.
    """
    random, keep = Random(f"{kind}:{seed}:{row.id}"), words_of_answer(row)
    parts = pieces(last_question(row))
    changed, names = list(parts), dict[str, str]()
    for at in range(1, len(parts), 2):
        word = parts[at].lower()
        other = None if word in keep else KINDS[kind].other(parts, at, random)
        if other is None:
            continue
        if kind == "names":  # two people stay two
            while other.lower() in {*names.values(), *map(str.lower, parts)}:
                other = KINDS[kind].other(parts, at, random) or other
            other = names.setdefault(word, other.lower())
        changed[at] = _like(parts[at], other)
    words = tuple((before, after) for before, after in zip(parts, changed, strict=True) if before != after)
    return Swapped(asked(row, lambda _: "".join(changed)), words) if words else None


@cache
def texts() -> dict[str, Any]:
    """The tables of `counterfactual.toml`."""
    return tomllib.loads(resources.files("edgekit.data").joinpath("counterfactual.toml").read_text("utf-8"))


def _name(parts: Sequence[str], at: int, random: Random) -> str | None:
    """A name of the same gender and of another origin."""
    place = _origins().get(parts[at].lower())
    if place is None:
        return None
    gender, origin = place
    groups: Mapping[str, list[str]] = texts()["names"][gender]
    return random.choice(groups[random.choice([other for other in groups if other != origin])])


def _pronoun(parts: Sequence[str], at: int, random: Random) -> str | None:
    table, word = texts()["pronouns"], parts[at].lower()
    if word not in table["alone"]:
        found: str | None = table["swap"].get(word)
        return found
    between, following = "".join(parts[at + 1 : at + 2]), "".join(parts[at + 2 : at + 3]).lower()
    noun = between.isspace() and following and following not in table["not_a_noun"]
    return str(table["before_a_noun" if noun else "alone"][word])


def _spelling(parts: Sequence[str], at: int, random: Random) -> str | None:
    return _spellings().get(parts[at].lower())


@cache
def _origins() -> dict[str, tuple[str, str]]:
    """The gender and the origin of each name, in lower case."""
    return {
        name.lower(): (gender, origin)
        for gender, groups in texts()["names"].items()
        for origin, names in groups.items()
        for name in names
    }


@cache
def _spellings() -> dict[str, str]:
    pairs = texts()["spellings"]["pairs"]
    return {**dict(pairs), **{american: british for british, american in pairs}}


def _like(word: str, other: str) -> str:
    """`other` with the capital letters of `word`."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other.capitalize() if word[0].isupper() else other.lower()


KINDS: Mapping[str, Swap] = {
    swap.name: swap
    for swap in (
        Swap("names", "first names of another origin", _name),
        Swap("pronouns", "he and she, him and her", _pronoun),
        Swap("spellings", "British and American spellings", _spelling),
    )
}
