"""Output of C code, which knows nothing of Python's streams."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def to_stderr() -> Iterator[None]:
    """Let what C code prints to stdout go to stderr, because stdout may carry a JSON document."""
    _flush()
    try:
        stdout = os.dup(1)
    except OSError:  # a process without stdout
        yield
        return
    try:
        os.dup2(2, 1)
        yield
        _flush()
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _flush() -> None:
    """Write what the C library holds back."""
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
