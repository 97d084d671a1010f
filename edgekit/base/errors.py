"""Errors that are shown to people.

    EdgekitError                 what failed, what is unchanged, and a hint: what to type next
    ├── ConfigError              usage, configuration or data given by the user is wrong       (exit 2)
    ├── UnsupportedError         the model or the option cannot be built, said at plan time    (exit 2)
    ├── MissingPartError         an optional part is not installed                            (exit 4)
    ├── StageError               a stage began and failed                                     (exit 1)
    ├── GateError                finished, but a gate failed                                  (exit 3)
    └── CorruptError             an artifact is corrupt or does not match its digest          (exit 5)

The exit codes themselves stand in `cli.py` alone.
"""

from __future__ import annotations

from collections.abc import Sequence


class EdgekitError(Exception):
    """An error with a message for people and a hint that names the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def in_words(error: Exception) -> str:
    """What went wrong: the message where it is one for people, else the kind of error and its text."""
    return error.message if isinstance(error, EdgekitError) else f"{type(error).__name__}: {error}"


class ConfigError(EdgekitError):
    """Usage, configuration or data is wrong; `faults` lists all of it, not only the first."""

    def __init__(self, message: str, hint: str = "", faults: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.faults = list(faults)


class UnsupportedError(EdgekitError):
    """The model or the option cannot be built here; nothing was started."""


class MissingPartError(EdgekitError):
    """An optional part is not installed; the hint holds the pip line."""


class StageError(EdgekitError):
    """A stage began and failed; finished stages are kept."""


class GateError(EdgekitError):
    """Everything ran, but what came out is worse than its budget allows."""


class CorruptError(EdgekitError):
    """A file is truncated, malformed or not the one its digest names."""
