"""Tracks which processes use a cache, so that it is not cleaned at the same time.

<root>/.locks/door            held briefly while a process registers, and while the cache is cleaned
<root>/.locks/users/<pid>-*   held by each process that uses the cache, until it ends
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from edgekit.base.errors import ConfigError
from edgekit.base.locks import locked

LOCKS, USERS, DOOR = ".locks", "users", "door"


def join(root: Path) -> FileLock:
    """Register this process as a user of the cache `root` until the returned lock is released."""
    folder = root / LOCKS / USERS
    with locked(root / LOCKS / DOOR):
        folder.mkdir(parents=True, exist_ok=True)
        _present(folder)
        lock = FileLock(folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}")
        lock.acquire()
    return lock


@contextlib.contextmanager
def alone(root: Path) -> Iterator[None]:
    """Use the cache exclusively; other processes wait. Raises `ConfigError` while another process uses it."""
    busy = f"Another process is cleaning {root}; nothing was removed."
    with locked(root / LOCKS / DOOR, wait=False, busy=busy, hint="Try again when it has ended."):
        if users := _present(root / LOCKS / USERS):
            raise ConfigError(
                f"{root} is in use by process {', '.join(dict.fromkeys(users))}; nothing was removed.",
                "Run the same command again when that process has ended.",
            )
        yield


@contextlib.contextmanager
def others_wait(root: Path) -> Iterator[int]:
    """Keep processes from registering as users of the cache; yields how many registrations there are."""
    with locked(root / LOCKS / DOOR):
        yield len(_present(root / LOCKS / USERS))


def _present(folder: Path) -> list[str]:
    """The ids of the processes that hold a lock file in `folder`, one for each; unused lock files are removed."""
    found = []
    for file in sorted(folder.glob("*-*")):
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            found.append(file.name.partition("-")[0])
        else:
            lock.release()
            file.unlink(missing_ok=True)
    return found
