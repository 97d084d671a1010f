"""What quantizers calibrate on: rows, and plain text, so that a file does not get worse outside its task.

The plain text that comes with edgekit, `calibration.txt`, has about 124,000 bytes: paragraphs of the CIA World Factbook
(public domain, from github.com/factbook/factbook.json) and of William Morris, "News from Nowhere" (1890, public domain,
from github.com/GITenberg); and prose, messages, dialogues, tables, arithmetic, code and passages in twelve other
languages, which were written for it and have the licence of edgekit. It holds no text that the proof judges by.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol, TypeVar

from edgekit.base.errors import ConfigError, reason
from edgekit.data.kinds import READ, holds_rows
from edgekit.data.reading import read_rows
from edgekit.data.rows import Row, evenly_spaced

MAX_CHARACTERS = 8 << 20  # of a text; 40 windows need a hundredth of it
HELD_OUT_ROWS, HELD_OUT_TEXTS = 32, 12  # that quantized files are compared on
_HINT = f"Give plain text in UTF-8, or rows ({READ})."
_BLANK_LINES = re.compile(r"\n\s*\n")

Item = TypeVar("Item")


class TextTokenizer(Protocol):
    """The text path of a model."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`."""

    @property
    def begin_ids(self) -> list[int]:
        """The ids that the tokenizer adds before a text by itself, such as BOS."""


@dataclass(frozen=True)
class Calibration:
    """`rows`, which a model reads in its chat template, and `passages` of plain text."""

    rows: list[Row]
    passages: list[str]


def calibration_of(file: Path, columns: str = "") -> Calibration:
    """The rows of a file that holds rows, else the passages of its text. `columns` are those of `--columns`.

    Raises `ConfigError` as `read_rows` and `passages` do.
    """
    if holds_rows(file):
        return Calibration(read_rows(file, columns), [])
    return Calibration([], passages(file))


def passages(file: Path | None = None) -> list[str]:
    """The passages, which blank lines separate, of a file of plain text in UTF-8; by default those that come with edgekit.

    Raises `ConfigError` when the file is missing, no plain text, empty, or longer than 8 Mi characters.
    """
    if file is None:
        text = resources.files("edgekit.data").joinpath("calibration.txt").read_text("utf-8")
    else:
        text = _text(file)
    return [passage.strip("\n") for passage in _BLANK_LINES.split(text) if passage.strip()]


def windows(
    tokenizer: TextTokenizer, passages: Sequence[str], length: int = 256, count: int = 40
) -> list[list[int]]:
    """Token ids of pieces of the text, each of at most `length` tokens: all of it, or `count` pieces evenly spread over it.

    Each begins as the tokenizer begins a text, like the plain text of the proof: some models compute nothing of use
    without BOS.
    """
    return evenly_spaced(_pieces(tokenizer, passages, length), count)


def split_windows(
    tokenizer: TextTokenizer, passages: Sequence[str], length: int = 256, count: int = 40
) -> tuple[list[list[int]], list[list[int]]]:
    """The pieces of `windows`, and others, of other content, to compare files on. Of a text that has few left, a quarter is set
    aside."""
    pieces = _pieces(tokenizer, passages, length)
    used, others = set_aside(pieces, count, HELD_OUT_TEXTS)
    return used, [ids for ids in others if ids not in used]


def split_rows(rows: Sequence[Row], count: int) -> tuple[list[Row], list[Row]]:
    """`count` rows to calibrate on, and others, of other content, to compare files on."""
    used, others = set_aside(rows, count, HELD_OUT_ROWS)
    seen = [row.messages for row in used]
    return used, [row for row in others if row.messages not in seen]


def set_aside(items: Sequence[Item], count: int, held: int) -> tuple[list[Item], list[Item]]:
    """`evenly_spaced(items, count)`, and up to `held` of the others.

    Of few items at least a quarter is among the others, as far as `held` asks for it; then the first are fewer.
    """
    places = range(len(items))
    used = evenly_spaced(places, count)
    others = sorted({*places} - {*used})
    if len(others) < (least := min(held, len(items) // 4)):
        others = evenly_spaced(places, least)
        used = evenly_spaced(sorted({*places} - {*others}), count)
    return [items[place] for place in used], [items[place] for place in evenly_spaced(others, held)]


def _pieces(tokenizer: TextTokenizer, passages: Sequence[str], length: int) -> list[list[int]]:
    """The whole text in pieces of `length` tokens, the last one shorter."""
    begin = tokenizer.begin_ids
    ids, step = tokenizer.encode("\n\n".join(passages)), length - len(begin)
    return [[*begin, *ids[start : start + step]] for start in range(0, len(ids), step)]


def _text(file: Path) -> str:
    try:
        if file.exists() and not file.is_file():  # a device or a pipe may be endless
            raise ConfigError(f"{file} is not a file.", _HINT)
        with file.open(encoding="utf-8-sig") as stream:
            text = stream.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The calibration text {file} cannot be read: {reason(error)}.", _HINT) from error
    if "\0" in text:
        raise ConfigError(f"{file} is a binary file, not plain text.", _HINT)
    if not text.strip():
        raise ConfigError(f"{file} holds no text.", _HINT)
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"{file} is longer than {MAX_CHARACTERS:,} characters, and calibration reads a few pages.",
            f"Give a part of it: head -n 10000 {file.name} > NEW.",
        )
    return text
