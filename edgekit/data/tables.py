"""Records of a data file, one at a time: CSV, TSV, JSONL and JSON; `arrow` has those of Parquet and Arrow."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.data.kinds import Kind, open_text
from edgekit.data.rows import Fault, encodable

LONGEST_CELL = 1 << 27  # characters; Python's own limit is 131,072, which is less than a long conversation
EXAMPLE = "Write one JSON object for each row, with 'prompt' and 'completion', or 'messages'."


Record = tuple[int, Mapping[str, Any] | Fault]
"""A line, or the number of a row where there are no lines, and its values by column."""


@dataclass(frozen=True)
class Table:
    """A file of records. `names` are its columns, where the file declares them once for all records.

    `read(columns)` gives the records, with the values of these columns at least; Parquet and Arrow files are decoded no
    further. `classes` are the names of integer labels by column.
    """

    kind: Kind
    read: Callable[[Sequence[str]], Iterator[Record]]
    names: tuple[str, ...] | None = None
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def open_lines(path: Path, kind: Kind) -> Table:
    """The records of a text file, which are read as they are asked for.

    Raises `ConfigError` for a file that breaks the rules of its kind, also while it is read.
    """
    if kind.name == "jsonl":
        return Table(kind, lambda _: _json_lines(path, kind))
    if kind.name == "json":
        return Table(kind, lambda _: _json_list(path, kind))
    return _delimited(path, kind)


def check_names(path: Path, names: Sequence[str]) -> None:
    """Raise `ConfigError` when two columns of a table have one name: which of them is meant cannot be said."""
    if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
        raise ConfigError(
            f"{path} has two columns with the name '{twice[0]}'. Nothing was started.",
            "Give each column a name of its own.",
        )


def _json_lines(path: Path, kind: Kind) -> Iterator[Record]:
    with open_text(path, kind) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _object(line.rstrip("\n"))


def _object(line: str) -> Mapping[str, Any] | Fault:
    try:
        value = json.loads(line, object_pairs_hook=_unique)
    except Fault as fault:
        return fault
    except json.JSONDecodeError as error:
        return Fault(f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except RecursionError:
        return Fault("not JSON: nested too deeply")
    except ValueError:
        return Fault("not JSON that can be read: it has a number with too many digits")
    return _record(value)


def _record(value: Any) -> Mapping[str, Any] | Fault:
    if isinstance(value, Fault):
        return value
    if not isinstance(value, dict):
        return Fault("not a JSON object")
    try:
        for key in value:
            encodable(key, "a key")
    except Fault as fault:
        return fault
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises `Fault` for a key that it has twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise Fault(f"it has the key {key!a} twice")
    return found


def _unique_row(pairs: list[tuple[str, Any]]) -> Any:
    """The same, with the `Fault` in place of the object, so that the rest of the file is read."""
    try:
        return _unique(pairs)
    except Fault as fault:
        return fault


def _json_list(path: Path, kind: Kind) -> Iterator[Record]:
    try:
        with open_text(path, kind) as file:
            found = json.load(file, object_pairs_hook=_unique_row)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not valid JSON: {error.msg.removesuffix(' at')} in line {error.lineno}, column {error.colno}.",
            EXAMPLE,
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path} is JSON that is nested too deeply.", EXAMPLE) from error
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be read: it has a number with too many digits. Nothing was started.", EXAMPLE
        ) from error
    if isinstance(found, dict):
        keys = ", ".join(key if key.isprintable() else ascii(key) for key in list(found)[:8])
        raise ConfigError(
            f"{path} is one JSON object with the keys {keys}, not a list of rows. Nothing was started.",
            EXAMPLE,
        )
    for number, value in enumerate(found, start=1):
        yield number, _record(value)


def _delimited(path: Path, kind: Kind) -> Table:
    records = _cells(path, kind)
    _, header = next(records, (0, []))
    names = tuple(name.strip() for name in header)
    check_names(path, names)
    return Table(kind, lambda _: _by_name(records, names), tuple(filter(None, names)))


def _by_name(records: Iterator[tuple[int, list[str]]], names: tuple[str, ...]) -> Iterator[Record]:
    for line, cells in records:
        if len(cells) == len(names):
            yield line, {name: cell for name, cell in zip(names, cells, strict=True) if name}
        else:
            yield (
                line,
                Fault(f"it has {len(cells)} cell{'s' * (len(cells) != 1)}, and the header has {len(names)}"),
            )


def _cells(path: Path, kind: Kind) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record begins, and its cells; empty records are left out."""
    csv.field_size_limit(LONGEST_CELL)
    with open_text(path, kind, newline="") as file:
        reader = csv.reader(file, delimiter=kind.delimiter, strict=True)
        start = 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                why = str(error)
                if "end of data" in why:
                    why = "a cell begins with a quotation mark and never ends"
                elif "expected after" in why:
                    why = "there is text after the closing quotation mark of a cell"
                raise ConfigError(
                    f"{path}, the row that begins in line {start}: {why}. Nothing was started.",
                    'Put the whole cell in quotation marks, and double each " within it.',
                ) from error
            if any(cells):
                yield start, cells
            start = reader.line_num + 1
