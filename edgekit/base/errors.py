"""Errors that are shown to people.

    EdgekitError                 what failed, what is unchanged, and a hint: what to type next
    ├── ConfigError              usage, configuration or data given by the user is wrong       (exit 2)
    ├── UnsupportedError         the model or the option is not supported, known at plan time  (exit 2)
    ├── MissingPartError         an optional part is not installed                            (exit 4)
    ├── StageError               a stage began and failed                                     (exit 1)
    ├── GateError                finished, but a gate failed                                  (exit 3)
    └── CorruptError             an artifact is corrupt or does not match its digest          (exit 5)

Only `cli.py` contains the exit codes.
"""

from __future__ import annotations

from collections.abc import Sequence


class EdgekitError(Exception):
    """An error with a message for people and a hint on the next step."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def in_words(error: Exception) -> str:
    """The message of an `EdgekitError`, else the type of the error and its text."""
    return error.message if isinstance(error, EdgekitError) else f"{type(error).__name__}: {error}"


def reason(error: Exception) -> str:
    """Why a file could not be read or written: the system's own words without its number and the path."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    return (isinstance(error, OSError) and error.strerror) or str(error)


class ConfigError(EdgekitError):
    """Usage, configuration or data is wrong; `faults` lists all faults."""

    def __init__(self, message: str, hint: str = "", faults: Sequence[str] = ()) -> None:
        super().__init__(message, hint)
        self.faults = list(faults)


class UnsupportedError(EdgekitError):
    """The model or the option is not supported; nothing was started."""


class MissingPartError(EdgekitError):
    """An optional part is not installed; the hint contains the pip command."""


class StageError(EdgekitError):
    """A stage started and failed; finished stages are kept."""


class GateError(EdgekitError):
    """Everything ran, but the result exceeds its budget."""


class CorruptError(EdgekitError):
    """A file is truncated, malformed or differs from its digest."""
