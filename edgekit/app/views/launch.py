"""A build started from the app: in a process of its own, looked at until it runs or says why it does not.

What a log ends with is the last word of a process that nobody waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from edgekit.app.views.command import Command
from edgekit.base.texts import plain
from edgekit.build import runs

LOG = "build.log"  # in the cache: what the process prints
PATIENCE_S = 60.0  # a slow disk may take this long to load the program
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
        return f"The build could not be started: {error.strerror or error}. Check that {cache_dir} can be written."
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end and not gone():
        run = runs.read(cache_dir)
        is_new = run is not None and (before is None or run.started != before.started)
        if run is not None and run.pid == pid and is_new:
            if run.state != "RUNNING":
                return run.ending if run.state == "STOPPED" else ""
            if (cache_dir / runs.EVENTS).exists():
                return ""
        elif not psutil.pid_exists(pid):
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
