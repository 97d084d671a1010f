"""A process started from the app, looked at until it runs or says why it does not: a build, a server.

What a log ends with is the last word of a process that nobody waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from edgekit.base.command import Command
from edgekit.base.errors import reason
from edgekit.base.texts import plain
from edgekit.build import runs

LOG = "build.log"  # in the cache: what the process prints
PATIENCE_S = 120.0  # a slow disk may take this long to load a program and its model
EVERY_S = 0.1
TAIL = 4096


def launch(command: Command, cache_dir: Path, gone: Callable[[], bool] = lambda: False) -> str:
    """Start a build and wait until it is under way or nobody waits any more; blocking.

    Returns why it ended at once, empty when it runs or is done.
    """
    log, before = cache_dir / LOG, runs.read(cache_dir)
    try:
        pid = command.start(log)
    except OSError as error:
        return f"The build could not be started: {reason(error)}. Check that {cache_dir} can be written."

    def settled() -> str | None:
        run = runs.read(cache_dir)
        if run is None or run.pid != pid or (before is not None and run.started == before.started):
            return None
        if run.state != "RUNNING":
            return run.ending if run.state == "STOPPED" else ""
        return "" if (cache_dir / runs.EVENTS).exists() else None

    return outcome_of(pid, log, settled, gone)


def outcome_of(
    pid: int,
    log: Path,
    settled: Callable[[], str | None] = lambda: None,
    gone: Callable[[], bool] = lambda: False,
) -> str:
    """How the start of the process `pid` went; blocking.

    Empty when it still runs after its start, or when nobody waits any more; else what `settled` says, or why it ended.
    """
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not gone():
        ended = not psutil.pid_exists(pid)  # before the last look, for it may settle in between
        if (said := settled()) is not None:
            return said
        if ended:
            return last_words(log)
        time.sleep(EVERY_S)
    return ""


def last_words(log: Path) -> str:
    """The error at the end of a log, with its faults and hint; the last line where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = [plain(line).strip() for line in file.read(TAIL).decode(errors="replace").splitlines()]
    except OSError as error:
        return f"It ended, and {log} cannot be read: {error.strerror}."
    lines = [line for line in lines if line]
    first = next((n for n in reversed(range(len(lines))) if lines[n].startswith("edgekit: ")), len(lines) - 1)
    said = [line.removeprefix("edgekit: ").removeprefix("→ ") for line in lines[max(first, 0) :]]
    return " ".join(said) or f"It ended without output in {log}."
