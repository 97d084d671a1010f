"""Accuracy in slices of the rows: by label, by length of the prompt, and by columns of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.data.noise import last_question
from edgekit.data.rows import Row
from edgekit.evaluation.statistics import wilson

KNOWN = ("template", "language", "lang", "locale")
"""Columns that make slices without being asked for, where the rows have them."""
QUARTERS = 4
WORST = 5
AT_LEAST = 10


@dataclass(frozen=True)
class Slicing:
    """The columns of the data whose values make slices, and the fewest rows of a slice that is named among the worst."""

    columns: tuple[str, ...] = ()
    at_least: int = AT_LEAST

    @classmethod
    def of(cls, columns: str, at_least: int) -> Slicing:
        """From columns as `--slices` takes them, such as `language,source`."""
        names = dict.fromkeys(name.strip() for name in columns.split(","))
        return cls(tuple(filter(None, names)), at_least)

    @property
    def keep(self) -> tuple[str, ...]:
        """The columns that the rows should keep."""
        return tuple(dict.fromkeys((*self.columns, *KNOWN)))

    def check(self, rows: Sequence[Row]) -> None:
        """Raise `ConfigError` for a column that no row has."""
        for column in self.columns:
            if not any(column in row.more for row in rows):
                raise ConfigError(
                    f"No row has a value in a column '{column}'. Nothing was started.",
                    "Check --slices; it names columns of the data, separated by commas.",
                )


def slices(rows: Sequence[Row], right: Sequence[bool], slicing: Slicing) -> list[dict[str, Any]]:
    """The accuracy in each slice, with its 95 % interval: those by label first, then by length, then by column.

    `right` says of each row whether it was answered rightly. Rows without a value in a column are in no slice of it.
    """
    lengths = _lengths(rows)
    values: dict[str, list[str | None]] = {
        "label": [row.label for row in rows],
        "words": lengths,
        **{column: [row.more.get(column) for row in rows] for column in slicing.keep},
    }
    found = []
    for by, of in values.items():
        for value in sorted({each for each in of if each is not None}, key=_number_first):
            inside = [answer for answer, each in zip(right, of, strict=True) if each == value]
            hits = sum(inside)
            found.append(
                {
                    "by": by,
                    "value": value,
                    "n": len(inside),
                    "accuracy": hits / len(inside),
                    "wilson_95": list(wilson(hits, len(inside))),
                }
            )
    return found


def worst(found: Sequence[Mapping[str, Any]], accuracy: float, at_least: int) -> list[dict[str, Any]]:
    """At most five slices of at least `at_least` rows, the lowest accuracy first; none that is as good as all rows."""
    below = [dict(one) for one in found if one["n"] >= at_least and one["accuracy"] < accuracy]
    return sorted(below, key=lambda one: (one["accuracy"], -one["n"]))[:WORST]


def _lengths(rows: Sequence[Row]) -> list[str | None]:
    """The number of words of each row's last question, as one of at most four ranges with about equally many rows."""
    return list(number_ranges([len(last_question(row).split()) for row in rows]))


def number_ranges(counts: Sequence[int]) -> list[str]:
    """Each of `counts` as one of at most four ranges, such as `3 to 5`, with about equally many of them."""
    ranked = sorted(counts)
    ends = sorted({ranked[len(ranked) * part // QUARTERS - 1] for part in range(1, QUARTERS)} | {ranked[-1]})
    starts = [ranked[0], *(end + 1 for end in ends)]
    ranges = [
        f"{start}" if start == end else f"{start} to {end}" for start, end in zip(starts, ends, strict=False)
    ]
    return [next(text for end, text in zip(ends, ranges, strict=True) if count <= end) for count in counts]


def _number_first(value: str) -> tuple[float, str]:
    """Sorts ranges and numbers by their first number, before other values."""
    first = value.partition(" ")[0]
    return (float(first) if first.isdecimal() else float("inf"), value)
