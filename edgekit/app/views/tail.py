"""New lines of a file that another process writes, however large it is and whatever happens to it meanwhile."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
FIRST_BYTES = (
    4 * MIB
)  # read of what is there already, or was written since the last look; older lines are skipped
LONGEST_LINE = 256 << 10
SEAM = 64  # bytes before the place read up to; when they changed, another file was put there


@dataclass(frozen=True)
class NewLines:
    """What one look found: whole lines, oldest first, and what was not read.

    `anew` says that the file is another one than before, so that all that was read of it no longer counts.
    """

    lines: tuple[str, ...] = ()
    skipped_bytes: int = 0
    dropped_lines: int = 0
    anew: bool = False
    missing: bool = False
    trouble: str = ""


class Tail:
    """Reads a growing file from look to look; each look reads some MiB at most."""

    def __init__(
        self, path: Path, *, first_bytes: int = FIRST_BYTES, longest_line: int = LONGEST_LINE
    ) -> None:
        self.path = path
        self._first, self._longest = first_bytes, longest_line
        self._file: tuple[int, int] | None = None
        self._place, self._seam, self._rest, self._cut = 0, b"", b"", False

    def read(self) -> NewLines:
        """The lines that were finished since the last look. Raises nothing: what is wrong is in the result."""
        try:
            handle = os.open(
                self.path, os.O_RDONLY | os.O_NONBLOCK
            )  # a pipe without a writer must not hold us
        except FileNotFoundError:
            return NewLines(anew=self._gone(), missing=True)
        except OSError as error:
            return NewLines(trouble=f"{self.path} cannot be read: {error.strerror or error}.")
        try:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                return NewLines(anew=self._gone(), trouble=f"{self.path} is not a file.")
            return self._read_from(handle, found)
        except OSError as error:
            return NewLines(trouble=f"{self.path} cannot be read: {error.strerror or error}.")
        finally:
            os.close(handle)

    def _read_from(self, handle: int, found: os.stat_result) -> NewLines:
        same = self._file == (found.st_dev, found.st_ino) and found.st_size >= self._place
        seam = os.pread(handle, len(self._seam), self._place - len(self._seam)) if same else b""
        anew = not same or seam != self._seam
        if anew:
            anew = self._gone()
            self._file = (found.st_dev, found.st_ino)
        skipped = max(0, found.st_size - self._place - self._first)
        if skipped:
            self._place += skipped
            self._rest, self._cut = b"", True
        read = os.pread(handle, min(found.st_size - self._place, self._first), self._place)
        self._place += len(read)
        self._seam = (self._seam + read)[-SEAM:] if not skipped else read[-SEAM:]
        lines, dropped = self._split(read)
        return NewLines(tuple(lines), skipped, dropped, anew)

    def _split(self, read: bytes) -> tuple[list[str], int]:
        """The whole lines, and how many were dropped: too long, or cut at the place where reading began."""
        *whole, rest = (self._rest + read).split(b"\n")
        dropped = 0
        if self._cut and whole:
            whole, self._cut = whole[1:], False
        lines = []
        for line in whole:
            if len(line) > self._longest:
                dropped += 1
            else:
                lines.append(line.decode("utf-8", "replace").rstrip("\r"))
        if len(rest) > self._longest:
            dropped += not self._cut
            rest, self._cut = b"", True
        self._rest = b"" if self._cut else rest
        return lines, dropped

    def _gone(self) -> bool:
        """Forget the file; whether there was one."""
        there, self._file = self._file is not None, None
        self._place = 0
        self._seam = b""
        self._rest = b""  # of a line that is not whole yet
        self._cut = False  # whether the line under way has lost its beginning
        return there
