"""The audit log: one line of JSON for each change, chained by digests, so that a changed or missing line shows.

Each line holds the SHA-256 of the line before it (Haber and Stornetta 1991, "How to time-stamp a digital document").
The digest of the newest line stands beside the log in `audit.head`: without it, lines cut off the end would not show.
Whoever can write to the folder can write both anew; keep a copy of the head elsewhere to be safe from them too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE, HEAD = "audit.jsonl", "audit.head"
FIRST = "0" * 64
TAIL = 1 << 16  # bytes of the end that hold the newest line


@dataclass(frozen=True)
class Fault:
    """A line of the log that does not hold, and what is wrong with it; line numbers begin at 1."""

    line: int
    what: str


class Audit:
    """The audit log below a state folder. Several processes may append to it."""

    def __init__(self, state: Path) -> None:
        self.path = state / FILE
        self._head = state / HEAD

    def append(self, *, who: str, what: str, why: str = "", **details: Any) -> dict[str, Any]:
        """Add a change and return its line; it is on the disk when this returns. Raises `OSError` when it cannot be."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked() as descriptor:
            count, before = self._newest(descriptor)
            entry = {
                "n": count + 1, "time": time.time(), "who": who, "what": what, "why": why, **details,
                "before": before,
            }  # fmt: skip
            line = json.dumps(entry, ensure_ascii=False, default=str).encode()
            end = os.lseek(descriptor, 0, os.SEEK_END)
            try:
                _write(descriptor, line + b"\n")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, end)  # a full disk leaves no half of a line
                raise
            self._write_head(count + 1, _digest(line))
        return entry

    def entries(self) -> list[dict[str, Any]]:
        """Every readable line, oldest first."""
        found = []
        for line in self._lines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found

    def check(self) -> list[Fault]:
        """What does not hold: lines changed, taken out, put in or cut off; none when the log is whole."""
        faults, lines = [], self._lines()
        before = FIRST
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                chained, counted = entry["before"], entry["n"]
            except (ValueError, KeyError, TypeError):
                faults.append(Fault(number, "it is not a line of this log"))
            else:
                if chained != before:
                    what = (
                        "the line before it is missing"
                        if counted != number
                        else "the line before it was changed"
                    )
                    faults.append(Fault(number, what))
            before = _digest(line)
        try:
            head = self._head.read_text(encoding="ascii")
            if not head and lines:  # as a power cut leaves a file; no sign that somebody changed the log
                return [*faults, Fault(len(lines), f"{HEAD} is empty: later lines may be missing")]
            count, digest = head.split()
            newest = int(count)
        except (OSError, ValueError):
            return [*faults, Fault(len(lines), f"{HEAD} is missing")] if lines else faults
        if newest > len(lines):
            faults.append(Fault(len(lines), f"{newest - len(lines)} lines after it are missing"))
        elif newest and _digest(lines[newest - 1]) != digest:
            faults.append(Fault(newest, "it was changed"))
        return faults

    def _newest(self, descriptor: int) -> tuple[int, str]:
        """The number and the digest of the newest line; the whole log is read only where the head does not tell."""
        size = os.lseek(descriptor, 0, os.SEEK_END)
        tail = os.pread(descriptor, TAIL, max(0, size - TAIL))
        last = tail.split(b"\n")[-2:-1] if tail.endswith(b"\n") and tail.count(b"\n") > 1 else []
        try:
            count, digest = self._head.read_text(encoding="ascii").split()
            if last and _digest(last[0]) == digest:
                return int(count), digest
        except (OSError, ValueError):
            pass
        lines = _whole_lines(descriptor)
        return len(lines), _digest(lines[-1]) if lines else FIRST

    def _lines(self) -> list[bytes]:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        return text.split(b"\n")[:-1]  # what follows the last line end is a line whose writer was killed

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _write_head(self, count: int, digest: str) -> None:
        beside = self._head.with_name(f".{HEAD}.partial")
        with beside.open("w", encoding="ascii") as file:
            file.write(f"{count} {digest}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._head)


def _whole_lines(descriptor: int) -> list[bytes]:
    """The lines of the open log; a torn last one, whose writer was killed, is cut off."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        text = file.read()
    end = text.rfind(b"\n") + 1
    if end < len(text):
        os.ftruncate(descriptor, end)
    return text[:end].split(b"\n")[:-1]


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
