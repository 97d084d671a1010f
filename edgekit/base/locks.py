"""Locks between processes: a lock file that the system releases when its holder ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from edgekit.base.errors import ConfigError


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    wait: bool = True,
    busy: str = "",
    hint: str = "",
    waiting: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Hold the lock file `path`; its folder is created if it is missing.

    Waits for another holder, after calling `waiting` once, or, with `wait=False`, raises `ConfigError(busy, hint)` when
    there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise ConfigError(busy or f"Another process holds {path}; nothing was done.", hint) from error
        if waiting is not None:
            waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
