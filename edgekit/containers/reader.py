"""A bounded reader: no length that a file claims is believed before it is held against what is left of the file."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Self

from edgekit.base.errors import ConfigError, CorruptError, reason

WINDOW = 16 * 1024  # bytes read ahead
HINT = "Fetch, copy or export the file again."


class Reader:
    """A regular file read forwards, `limit` bytes of it at most; skipped bytes are free and never read.

    Raises `ConfigError` when the file is missing or may not be read, `CorruptError` when it is a folder, a pipe or
    a device, which could block for ever, and whenever more is asked of it than it holds.
    """

    def __init__(self, path: Path, limit: int) -> None:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise CorruptError(f"{path} is not a regular file.", "Name the file itself.")
            self._file = path.open("rb")
        except FileNotFoundError as error:
            raise ConfigError(f"There is no file {path}.", "Name a file that exists.") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise ConfigError(f"{path} cannot be read: {reason(error)}.", "Check its permissions.") from error
        self.path = path
        self.size = status.st_size
        self.position = 0
        self._allowance = limit
        self._window, self._window_start = b"", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def left(self) -> int:
        """How many bytes stand behind the current position."""
        return self.size - self.position

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes, which hold `what`."""
        start = self.position - self._window_start
        end = start + count
        self._allowance -= count
        if end > len(self._window) or self._allowance < 0:
            self._refill(count, what)
            start, end = 0, count
        self.position += count
        return self._window[start:end]

    def skip_to(self, position: int) -> None:
        """Go on at `position`, which the caller has found to be inside the file."""
        self.position = position

    def corrupt(self, reason: str, at: int | None = None) -> CorruptError:
        """The error to raise: what is wrong at the current position, or at byte `at`."""
        place = self.position if at is None else at
        return CorruptError(f"{self.path} is truncated or damaged: {reason} (at byte {place}).", HINT)

    def _refill(self, count: int, what: str) -> None:
        if count > self.left:
            raise self.corrupt(f"{what} takes {count} bytes, and {max(self.left, 0)} are left")
        if self._allowance < 0:
            raise self.corrupt(f"{what} takes the header past the size that edgekit reads")
        self._file.seek(self.position)
        self._window, self._window_start = self._file.read(max(count, WINDOW)), self.position
        if len(self._window) < count:
            raise self.corrupt("the file became shorter while it was read")


def shown(name: str) -> str:
    """A name from a file as a message may show it: short, with nothing that a terminal would act on."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")
