"""A build started from the app: in a process of its own, looked at until it runs or says why it does not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

from edgekit import runs
from edgekit.views.command import Command

LOG = "build.log"  # in the cache: what the process prints
PATIENCE_S = 60.0  # a slow disk may take this long to load the program
EVERY_S = 0.1
TAIL = 4096


def launch(command: Command, cache_dir: Path) -> str:
    """Start a build and wait until it is under way; returns why it ended at once, empty when it runs or is done."""
    log = cache_dir / LOG
    try:
        pid = command.start(log)
    except OSError as error:
        return f"The build could not be started: {error.strerror or error}. Check that {cache_dir} can be written."
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        run = runs.read(cache_dir)
        if run is not None and run.pid == pid:
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
            lines = [line.strip() for line in file.read(TAIL).decode(errors="replace").splitlines()]
    except OSError as error:
        return f"The build ended at once, and {log} cannot be read: {error.strerror}."
    lines = [line for line in lines if line]
    first = next((n for n in reversed(range(len(lines))) if lines[n].startswith("edgekit: ")), len(lines) - 1)
    said = [line.removeprefix("edgekit: ").removeprefix("→ ") for line in lines[max(first, 0) :]]
    return " ".join(said) or f"The build ended at once, without a word in {log}."
