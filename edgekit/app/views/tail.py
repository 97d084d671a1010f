"""New lines of a file that another process writes, however large it is and whatever happens to it meanwhile."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

from edgekit.base.errors import reason

MIB = 1 << 20
FIRST_BYTES = 4 * MIB  # that one look reads at most; older lines are skipped
LONGEST_LINE = 256 << 10


@dataclass(frozen=True)
class NewLines:
    """What one look found: whole lines, oldest first, and what was not read.

    `anew` says that the file is another one than before, so that all that was read of it no longer counts.
    """

    lines: tuple[str, ...] = ()
    skipped_bytes: int = 0
    dropped_lines: int = 0
    anew: bool = False
    trouble: str = ""


class Tail:
    """Reads a growing file from look to look."""

    def __init__(
        self, path: Path, *, first_bytes: int = FIRST_BYTES, longest_line: int = LONGEST_LINE
    ) -> None:
        self.path = path
        self._first, self._longest = first_bytes, longest_line
        self._file: tuple[int, int] | None = None
        self._place, self._rest = 0, b""

    def read(self) -> NewLines:
        """The lines that were finished since the last look. Raises nothing: what is wrong is in the result."""
        try:
            found = self.path.stat()
            if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for its writer
                return NewLines(trouble=f"{self.path} is not a file.")
            file = (found.st_dev, found.st_ino)
            anew = self._file is not None and (file != self._file or found.st_size < self._place)
            if anew:
                self._place, self._rest = 0, b""
            self._file = file
            skipped = max(0, found.st_size - self._place - self._first)
            with self.path.open("rb") as opened:
                opened.seek(self._place + skipped)
                read = opened.read(min(self._first, found.st_size - self._place))
        except FileNotFoundError:
            gone, self._file, self._place, self._rest = self._file is not None, None, 0, b""
            return NewLines(anew=gone)
        except OSError as error:
            return NewLines(trouble=f"{self.path} cannot be read: {reason(error)}.")
        self._place += skipped + len(read)
        if skipped:  # the line under way has lost its beginning
            self._rest, read = b"", read.partition(b"\n")[2]
        *whole, rest = (self._rest + read).split(b"\n")
        self._rest = rest[: self._longest + 1]  # enough to see at its end that it is too long
        lines = [line for line in whole if len(line) <= self._longest]
        texts = tuple(line.decode("utf-8", "replace").rstrip("\r") for line in lines)
        return NewLines(texts, skipped, len(whole) - len(lines), anew)
