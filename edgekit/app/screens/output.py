"""Output that outlives its terminal, so that an app whose terminal was closed ends instead of waiting for ever."""

from __future__ import annotations

import contextlib
from typing import IO, Any

from textual.driver import Driver


class Output:
    """A text file whose write errors are ignored.

    Textual writes in a thread with a bounded queue. A write to a closed terminal raises, which ends that thread; once the
    queue is full, the app waits for room in it and never ends.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write `text` where it can be written."""
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be written."""
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def outliving(kind: type[Driver]) -> type[Driver]:
    """A driver class that writes to an `Output`; one that writes to no file (a test's) is returned as it is."""

    class Outliving(kind):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if (file := getattr(self, "_file", None)) is not None:
                self._file = Output(file)

    return Outliving
