"""The rows of data files: read record by record, checked together, with every bad row named by its file and line."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgekit.base.errors import ConfigError
from edgekit.data import columns as naming
from edgekit.data.columns import Columns
from edgekit.data.kinds import UNREADABLE, Kind, kind_of, not_utf8, unreadable
from edgekit.data.rows import SHAPES, Fault, Row, others, row_of
from edgekit.data.tables import Table, open_lines

MAX_FAULTS_SHOWN = 20


def read_rows(path: Path, columns: str = "") -> list[Row]:
    """The rows of one file; exact duplicates count once. `columns` are those of `--columns`.

    Raises `ConfigError` with the bad rows and their lines, and for a file that is missing or has no rows.
    """
    reader = Reader(naming.named(columns))
    reader.add(path)
    return reader.finish(path)


class Reader:
    """Reads files one after the other, with the same columns in all of them; `finish` gives the rows.

    `kind` and `columns` are what the first file is and the columns that it is read by; `copies` counts the rows that are
    exact copies of others, and `joined` has the places of rows of a TSV file that may be several rows. `keep` are further
    columns to keep where a record has them (`Row.more`).
    """

    def __init__(self, given: Columns | None = None, keep: Sequence[str] = ()) -> None:
        self._more = Columns({name: name for name in keep})
        self.kind = ""
        self.copies = 0
        self.joined: list[str] = []
        self.columns = self._given = given
        self._rows: dict[str, Row] = {}
        self._faults: list[str] = []
        self._read = self._bad = 0

    @property
    def text(self) -> str:
        """What was read, in words."""
        if self.columns is None:
            return self.kind
        return f"{self.kind}, {self.columns.text}{' (guessed; --columns changes it)' if self.columns.guessed else ''}"

    def add(self, path: Path, name: str = "") -> None:
        """Read a file, which faults call `name`. Raises `ConfigError` when none of its rows can be read."""
        kind = kind_of(path)
        self.kind = self.kind or kind.text
        read, bad = self._read, self._bad
        try:
            table = _open(path, kind)
            names = self._add(table, path, name or path.name)
        except UnicodeDecodeError as error:
            raise not_utf8(path, kind) from error
        except UNREADABLE as error:
            raise unreadable(path, error) from error
        if self._read == read:
            raise ConfigError(
                f"{path} holds no rows.", f"Each row needs {SHAPES}, or columns that --columns names."
            )
        if names and self._bad - bad == self._read - read:
            self._check(path, table, names)

    def finish(self, source: object) -> list[Row]:
        """The rows of all files. Raises `ConfigError` with the first bad rows, if there are any."""
        if self._bad:
            rest = [f"... and {self._bad - len(self._faults)} more"] if self._bad > len(self._faults) else []
            raise ConfigError(
                f"{self._bad} of {self._read} rows in {source} cannot be used; nothing was started.",
                "Fix or remove these lines and run the same command again.",
                faults=self._faults + rest,
            )
        return list(self._rows.values())

    def _add(self, table: Table, path: Path, name: str) -> tuple[str, ...]:
        """Read all records; returns the columns of the file, where it has no header those of its first record.

        Each record may be in any of edgekit's own shapes. Other columns are guessed once, and then hold for all records.
        """
        names = table.names or ()
        fixed = self._check(path, table, names) if names else self._given
        more = [name for name in self._more.needed(names) if name in names]
        needed = [*dict.fromkeys([*fixed.needed(names), *more])] if fixed and names else ()
        for number, values in table.read(needed):
            self._read += 1
            try:
                if isinstance(values, Fault):
                    raise values
                if not names:
                    names = tuple(values)
                    fixed = self._first(names)
                elif fixed and fixed.guessed and (new := [name for name in values if name not in names]):
                    fixed, names = self._wider(fixed, (*names, *new)), (*names, *new)
                if table.kind.delimiter == "\t" and any(
                    "\t" in cell and "\n" in cell for cell in values.values()
                ):
                    self.joined.append(
                        f"{name}:{number}"
                    )  # one cell, or rows from one quotation mark to the next
                columns = fixed or _own(tuple(values))
                if columns is None:
                    raise Fault(f"no conversation: a row needs {SHAPES}")
                row = row_of(values, columns, table.classes)
                kept = others(values, self._more.of, table.classes)
                self._keep(replace(row, line=number, file=name, more=kept))
            except Fault as fault:
                self._bad += 1
                if len(self._faults) < MAX_FAULTS_SHOWN:
                    self._faults.append(f"{name}:{number}: {fault}")
        return names

    def _first(self, names: tuple[str, ...]) -> Columns | None:
        """The columns by those of a file's first record; None if each record is read by its own."""
        found = self._by_names(names)
        self.columns = self.columns or found
        return found if found and (found is self._given or found.guessed) else None

    def _by_names(self, names: Sequence[str]) -> Columns | None:
        """The given columns, else a guess; a guess for another split may be extended by one for this file."""
        found = naming.guess(names)
        if self._given and not (self._given.guessed and found and _extends(found, self._given)):
            return self._given
        return found

    def _wider(self, fixed: Columns, names: tuple[str, ...]) -> Columns:
        """The columns of records that have `names` altogether, where the guess for the first was `fixed`.

        Raises `Fault` when the columns of later records make another guess, or none.
        """
        found = naming.guess(names)
        if found is None or not _extends(found, fixed):
            raise Fault(
                f"its columns are not those of the first row: name them with {naming.proposal(names)}"
            )
        if self.columns is fixed:
            self.columns = found
        return found

    def _keep(self, row: Row) -> None:
        earlier = self._rows.setdefault(row.id, row)
        self.copies += earlier is not row
        if earlier.messages != row.messages:
            raise Fault(f"the id '{row.id}' is already used in {earlier.place} for a different conversation")

    def _check(self, path: Path, table: Table, names: Sequence[str]) -> Columns:
        """The columns to read a file by. Raises `ConfigError` when it lacks them, or when they are not plain."""
        columns = self._by_names(names)
        here = ", ".join(names)
        if columns is None and len(names) == 1:
            raise ConfigError(
                f"{path} is {table.kind.text} with the column {here} only, and a row needs a prompt and its answer. "
                "Nothing was started.",
                "Add a column with the answers.",
            )
        if columns is None:
            raise ConfigError(
                f"{path} is {table.kind.text} with the columns {here}. Which of them holds the prompt and which the "
                "answer is not plain. Nothing was started.",
                f"Name them: {naming.proposal(names)}",
            )
        if missing := columns.missing(names):
            raise ConfigError(
                f"{path} has no column {' and no column '.join(map(repr, missing))}. Its columns are {here}. "
                "Nothing was started.",
                f"Correct --columns.{_meant(missing, names)}"
                if self._given
                else f"Name them: {naming.OPTION}",
            )
        self.columns = self.columns or columns
        return columns


@functools.lru_cache(maxsize=256)
def _own(names: tuple[str, ...]) -> Columns | None:
    """The columns of a record in one of edgekit's own shapes, with what more can be guessed; None for any other record.

    Raises `Fault` when a column that may belong to the prompt would be left out.
    """
    own, found = naming.own(names), naming.guess(names)
    if own and found is None and not own.missing(names):
        raise Fault(
            f"which columns belong to the prompt is not plain: name them with {naming.proposal(names)}"
        )
    return found if own and found and _extends(found, own) else own


def _meant(missing: Sequence[str], names: Sequence[str]) -> str:
    """The columns that were meant by `missing`, where that can be guessed."""
    lower = {name.lower(): name for name in names}
    near = [found[0] for name in missing if (found := difflib.get_close_matches(name.lower(), lower, 1))]
    return f" Did you mean {' and '.join(repr(lower[name]) for name in near)}?" if near else ""


def _extends(columns: Columns, others: Columns) -> bool:
    return columns.of.items() >= others.of.items()


def _open(path: Path, kind: Kind) -> Table:
    if kind.is_text:
        return open_lines(path, kind)
    from edgekit.data.arrow import open_columns

    return open_columns(path, kind)
