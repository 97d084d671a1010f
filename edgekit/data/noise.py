"""Noise that leaves the meaning of a message alone: for robust tuning, and to measure what a model stands.

Ten families. Tuning uses five of them, with texts of its own; the others are held out, so that a model is also judged by
noise that it never saw. The kinds of edits are those of TextBugger (Li et al. 2018, arXiv 1812.05271) and of HELM's
perturbations (Liang et al. 2022, arXiv 2211.09110). Words of the message that also stand in its answer are left as they
are, because another word there would ask for another answer.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from random import Random
from typing import Any

from edgekit.data.rows import Row

STRENGTH = 0.2
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
LOOKALIKES = dict(zip("aceiopsxyABCEHIKMOPTX", "асеіорѕхуАВСЕНІКМОРТХ", strict=True))  # Latin to Cyrillic
MISREAD = {
    "rn": "m",
    "m": "rn",
    "o": "0",
    "l": "1",
    "i": "l",
    "s": "5",
    "b": "6",
    "cl": "d",
    "e": "c",
    "u": "v",
}
_WORD = re.compile(r"[^\W\d_]+")
_TOKEN = re.compile(r"\w+")


@dataclass(frozen=True)
class Draw:
    """What an edit may use: a source of chance, the share of words to touch, words to leave alone, and which texts."""

    random: Random
    strength: float
    keep: frozenset[str]
    texts: str  # "tuning" or "evaluation"


@dataclass(frozen=True)
class Family:
    """One kind of noise; a family that is `held_out` is never used in tuning unless a target names it."""

    name: str
    about: str
    held_out: bool
    edit: Callable[[str, Draw], str]


@cache
def texts() -> dict[str, Any]:
    """The tables of `noise.toml`."""
    return tomllib.loads(resources.files("edgekit.data").joinpath("noise.toml").read_text("utf-8"))


def perturb(
    text: str,
    family: str,
    seed: str,
    strength: float = STRENGTH,
    keep: frozenset[str] = frozenset(),
    *,
    held_out: bool = True,
) -> str:
    """`text` with noise of one family, the same for the same arguments on every machine.

    `strength` is the share of words that are changed, at least one; families that act on a whole text ignore it. `keep` are
    words, in lower case, that stay. `held_out` chooses the fillers and distractors that no model is tuned with.
    """
    draw = Draw(Random(f"{family}:{seed}"), strength, keep, "evaluation" if held_out else "tuning")
    return FAMILIES[family].edit(text, draw)


def perturbed(
    rows: Sequence[Row], family: str, seed: int, strength: float = STRENGTH, held_out: bool = True
) -> list[Row]:
    """The rows with noise in the last message of the user; ids, labels and answers stay."""
    return [noisy(row, family, f"{seed}:{row.id}", strength, held_out=held_out) for row in rows]


def noisy(row: Row, family: str, seed: str, strength: float = STRENGTH, *, held_out: bool = True) -> Row:
    """One row with noise in the last message of the user."""
    keep = words_of_answer(row)
    return asked(row, lambda text: perturb(text, family, seed, strength, keep, held_out=held_out))


def words_of_answer(row: Row) -> frozenset[str]:
    """The words of the row's answer, in lower case: another word there would ask for another answer."""
    return frozenset(word.lower() for word in _TOKEN.findall(row.answer))


def last_question(row: Row) -> str:
    """The text of the last message of the user; empty where it has none."""
    texts = [message["content"] for message in row.messages[:-1] if message["role"] == "user"]
    return texts[-1] if texts else ""


def asked(row: Row, change: Callable[[str], str]) -> Row:
    """The row with another text of the last message of the user; the same row where it has none."""
    messages = [dict(message) for message in row.messages]
    for message in reversed(messages[:-1]):
        if message["role"] == "user":
            message["content"] = change(message["content"])
            return replace(row, messages=tuple(messages))
    return row


def _words(text: str, draw: Draw, edit: Callable[[str], str], shortest: int = 3) -> str:
    """`text` with `edit` on a share of its words of at least `shortest` letters, one word at the least."""
    places = [
        found.span()
        for found in _WORD.finditer(text)
        if len(found.group()) >= shortest and found.group().lower() not in draw.keep
    ]
    count = min(len(places), max(1, round(draw.strength * len(_TOKEN.findall(text)))))
    for start, end in sorted(draw.random.sample(places, count), reverse=True):
        text = text[:start] + edit(text[start:end]) + text[end:]
    return text


def _typos(text: str, draw: Draw) -> str:
    return _words(text, draw, lambda word: _typo(word, draw.random))


def _typo(word: str, random: Random) -> str:
    """`word` with two letters swapped, or one deleted, doubled, or replaced by a neighbour on the keyboard."""
    place = random.randrange(len(word))
    match random.choice(("swap", "delete", "double", "neighbour")):
        case "swap":
            place = min(place, len(word) - 2)
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        case "delete":
            return word[:place] + word[place + 1 :]
        case "double":
            return word[:place] + word[place] + word[place:]
    row = next((row for row in KEYBOARD if word[place].lower() in row), "")
    if not row:
        return word[:place] + word[place + 1 :]
    at = row.index(word[place].lower())
    letter = random.choice(row[max(at - 1, 0) : at] + row[at + 1 : at + 2])
    return word[:place] + (letter.upper() if word[place].isupper() else letter) + word[place + 1 :]


def _case(text: str, draw: Draw) -> str:
    match draw.random.choice(("upper", "upper", "lower", "title", "mixed")):
        case "upper":
            changed = text.upper()
        case "lower":
            changed = text.lower()
        case "title":
            changed = text.title()
        case _:
            changed = "".join(draw.random.choice((letter.lower(), letter.upper())) for letter in text)
    return changed if changed != text else text.upper()


def _punctuation(text: str, draw: Draw) -> str:
    match draw.random.choice(("none", "end", "between")):
        case "none":
            changed = re.sub(r"(?<!\d)[.,;:!?'\"-](?!\d)", "", text)
        case "end":
            changed = text.rstrip(".!? ") + draw.random.choice(("!!!", "???", "...", "?!", " .", "!", ";"))
        case _:
            changed = re.sub(r" ", lambda space: draw.random.choice((", ", " ", " ", " - ", " ")), text)
    return changed if changed.strip() and changed != text else f"{text}..."


def _filler(text: str, draw: Draw) -> str:
    found = texts()["filler"][draw.texts]
    match draw.random.choice(("before", "after", "both")):
        case "before":
            return f"{draw.random.choice(found['before'])}{text}"
        case "after":
            return f"{text}{draw.random.choice(found['after'])}"
    return f"{draw.random.choice(found['before'])}{text}{draw.random.choice(found['after'])}"


def _distractor(text: str, draw: Draw) -> str:
    sentence = draw.random.choice(texts()["distractor"][draw.texts]["sentences"])
    end = "" if text.rstrip().endswith((".", "!", "?")) else "."
    return draw.random.choice((f"{sentence} {text}", f"{text}{end} {sentence}"))


def _spacing(text: str, draw: Draw) -> str:
    """Spaces left out, doubled, as line breaks, or within a word."""
    spaces = [found.start() for found in re.finditer(" ", text)]
    count = min(len(spaces), max(1, round(draw.strength * (len(spaces) + 1))))
    for place in sorted(draw.random.sample(spaces, count), reverse=True):
        text = text[:place] + draw.random.choice(("", "  ", "\n", "   ", "\t")) + text[place + 1 :]
    return text if spaces else _words(text, draw, lambda word: f"{word[:2]} {word[2:]}")


def _homoglyphs(text: str, draw: Draw) -> str:
    return _words(text, draw, lambda word: "".join(LOOKALIKES.get(letter, letter) for letter in word), 2)


def _misread(text: str, draw: Draw) -> str:
    """Letters as a scanner reads them."""

    def edit(word: str) -> str:
        places = [part for part in MISREAD if part in word.lower()]
        if not places:
            return word
        part = draw.random.choice(places)
        at = word.lower().index(part)
        return word[:at] + MISREAD[part] + word[at + len(part) :]

    return _words(text, draw, edit)


def _language_mix(text: str, draw: Draw) -> str:
    found = texts()["language_mix"]
    words: Mapping[str, list[str]] = found["words"]
    places = [
        each.span() for each in _WORD.finditer(text)
        if each.group().lower() in words and each.group().lower() not in draw.keep
    ]  # fmt: skip
    if not places:
        if draw.random.random() < 0.5:
            return f"{draw.random.choice(found['openings'])}{text}"
        return f"{text}{draw.random.choice(found['endings'])}"
    count = min(len(places), max(1, round(draw.strength * len(_TOKEN.findall(text)))))
    for start, end in sorted(draw.random.sample(places, count), reverse=True):
        text = text[:start] + draw.random.choice(words[text[start:end].lower()]) + text[end:]
    return text


def _elongation(text: str, draw: Draw) -> str:
    def edit(word: str) -> str:
        vowels = [place for place, letter in enumerate(word) if letter.lower() in "aeiou"] or [len(word) - 1]
        place = draw.random.choice(vowels)
        return word[:place] + word[place] * draw.random.choice((3, 4, 5)) + word[place + 1 :]

    return _words(text, draw, edit)


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("typos", "letters swapped, deleted, doubled or mistyped", False, _typos),
        Family("case", "upper, lower, title or mixed case", False, _case),
        Family("punctuation", "punctuation left out or added", False, _punctuation),
        Family("filler", "words around the message that say nothing", False, _filler),
        Family("distractor", "an unrelated sentence before or after", False, _distractor),
        Family("spacing", "spaces left out, doubled or as line breaks", True, _spacing),
        Family("homoglyphs", "Latin letters as Cyrillic ones that look alike", True, _homoglyphs),
        Family("ocr", "letters as a scanner misreads them", True, _misread),
        Family("language_mix", "some words in another language", True, _language_mix),
        Family("elongation", "vowels drawn out", True, _elongation),
    )
}
