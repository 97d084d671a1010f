"""Reads a person's own requests that are out of scope: rows as `--data` reads them, or one request on each line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.base.errors import ConfigError, reason
from edgekit.base.events import Emit, ignore
from edgekit.data.dataset import DataOptions, load_questions
from edgekit.data.kinds import named_as_rows
from edgekit.data.out_of_scope import ANSWER
from edgekit.data.rows import Row


def read_requests(path: Path, like: Sequence[Row], columns: str = "", emit: Emit = ignore) -> list[Row]:
    """The requests of `path`, which is a file of rows by its name, else a text with one request on each line.

    `columns` are those of `--columns`. A request without a system message gets that of one of the rows `like`: without it, it
    would be told from them by the message alone. Raises `ConfigError` for a file that cannot be read or has no requests.
    """
    if named_as_rows(path):
        found = load_questions(str(path), DataOptions(columns), emit)
    else:
        found = _lines(path)
    return [_framed(row, like[place % len(like)]) for place, row in enumerate(found)]


def _lines(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The requests in {path} cannot be read: {reason(error)}.",
            "Give a file of rows, or a text in UTF-8 with one request on each line.",
        ) from error
    texts = {line.strip(): number for number, line in reversed([*enumerate(lines, start=1)]) if line.strip()}
    if not texts:
        raise ConfigError(f"{path} holds no requests.", "Write one request on each line.")
    return [
        Row(
            f"{path.name}:{number}",
            ({"role": "user", "content": text}, {"role": "assistant", "content": ANSWER}),
            ANSWER,
            number,
            path.name,
        )
        for text, number in sorted(texts.items(), key=lambda each: each[1])
    ]


def _framed(row: Row, like: Row) -> Row:
    first = like.messages[0]
    if first["role"] != "system" or row.messages[0]["role"] == "system":
        return row
    return replace(row, messages=(first, *row.messages))
