"""Prompts that stand in more than one split: tests on them say nothing, because the model was tuned on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.data.rows import Row

SHOWN = 5
Prompt = str | tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Leak:
    """A row of `split` whose prompt is also in `other`, a later split, which keeps it."""

    row: Row
    split: str
    other: str

    @property
    def text(self) -> str:
        """Where it is, and where else."""
        return f"{self.row.place} ({self.split}): the same prompt is in {self.other}"

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        prompt = [dict(message) for message in self.row.messages[:-1]]
        return {
            "split": self.split,
            "kept_in": self.other,
            "file": self.row.file,
            "line": self.row.line,
            "id": self.row.id,
            "prompt": prompt,
        }


def find_leaks(parts: Mapping[str, Sequence[Row]]) -> list[Leak]:
    """The rows of earlier splits whose prompts are in a later one; the order of `parts` is that of the splits."""
    last: dict[Prompt, str] = {}
    for split, rows in parts.items():
        for row in rows:
            last[_prompt(row)] = split
    return [
        Leak(row, split, last[_prompt(row)])
        for split, rows in parts.items()
        for row in rows
        if last[_prompt(row)] != split
    ]


def without(parts: Mapping[str, Sequence[Row]], leaks: Sequence[Leak]) -> dict[str, list[Row]]:
    """The splits without the rows of `leaks`."""
    left_out = {(leak.split, leak.row.id) for leak in leaks}
    return {split: [row for row in rows if (split, row.id) not in left_out] for split, rows in parts.items()}


def summary(leaks: Sequence[Leak]) -> str:
    """How many rows are left out of which split, and the first of them."""
    counts = ", ".join(
        f"{count} of {split}"
        for split in dict.fromkeys(leak.split for leak in leaks)
        if (count := sum(leak.split == split for leak in leaks))
    )
    shown = ", ".join(leak.row.place for leak in leaks[:SHOWN])
    return f"left out, because a later split has the same prompt: {counts} ({shown}{', ...' if len(leaks) > SHOWN else ''})"


def _prompt(row: Row) -> Prompt:
    """What makes two prompts the same; the text itself where it is all, so that millions of rows need no copies."""
    if len(row.messages) == 2 and row.messages[0]["role"] == "user":
        return row.messages[0]["content"]
    return tuple((message["role"], message["content"]) for message in row.messages[:-1])
