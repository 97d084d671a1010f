"""The audit log of a device: one line of JSON for each change, chained by digests to reveal changed or missing lines.

Each line holds the SHA-256 of the line before it (Haber and Stornetta 1991, "How to time-stamp a digital document").
`audit.head` beside the log holds the digest of the newest line and the number of the oldest one, and so reveals lines
removed from either end. A person who can write to the folder can also rewrite the whole log; to detect that, keep a
copy of the head elsewhere.

When the log reaches 8 MiB, it is renamed to `audit.1.jsonl`, replacing the earlier one, and a new log continues the
same chain. So at least the last 8 MiB of changes are kept, about 30,000, and at most 16 MiB.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.locks import locked

FILE, OLDER, HEAD, LOCK = "audit.jsonl", "audit.1.jsonl", "audit.head", "audit.lock"
FIRST = "0" * 64
LARGEST_BYTES = 8 * 2**20  # of one file
TAIL = 1 << 16  # bytes of the end that hold the newest line


@dataclass(frozen=True)
class Fault:
    """A line of the log that is not valid, and what is wrong with it. Line numbers begin at 1 and are never reused."""

    line: int
    what: str


@dataclass(frozen=True)
class Head:
    """The contents of `audit.head`: the number and the digest of the newest line, and the number of the oldest."""

    count: int = 0
    digest: str = FIRST
    oldest: int = 1


def operator() -> str:
    """The default author of a change: the user and this machine, as in `anna@pi`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "edgekit"
    return f"{user}@{socket.gethostname()}"


class Audit:
    """The audit log below a state folder. Several processes may append to it."""

    def __init__(self, state: Path) -> None:
        self.path = state / FILE
        self._older = state / OLDER
        self._head = state / HEAD

    def append(self, *, who: str, what: str, why: str = "", **details: Any) -> dict[str, Any]:
        """Add a change and return its line; it is on the disk when this returns. Raises `OSError` when it cannot be."""
        with locked(self.path.with_name(LOCK)):
            head = self._rotated()
            with self._opened() as descriptor:
                head = self._newest(descriptor, head)
                entry = {
                    "n": head.count + 1, "time": time.time(), "who": who, "what": what, "why": why, **details,
                    "before": head.digest,
                }  # fmt: skip
                line = json.dumps(entry, ensure_ascii=False, default=str).encode()
                end = os.lseek(descriptor, 0, os.SEEK_END)
                try:
                    _write(descriptor, line + b"\n")
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, end)  # a full disk leaves no half of a line
                    raise
            self._write_head(Head(head.count + 1, _digest(line), head.oldest))
        return entry

    def entries(self) -> list[dict[str, Any]]:
        """Every readable line that is kept, oldest first."""
        return [entry for line in self._lines() if (entry := _parsed(line))]

    def check(self) -> list[Fault]:
        """The faults of the log: lines changed, removed, inserted or cut off; empty when the log is intact."""
        faults, lines, head = [], self._lines(), self._read_head()
        oldest = _oldest(lines, head)
        before = FIRST if oldest == 1 else None
        for number, line in enumerate(lines, oldest):
            entry = _parsed(line)
            if "before" not in entry or "n" not in entry:
                faults.append(Fault(number, "it is not a line of this log"))
            elif before is not None and entry["before"] != before:
                gap = entry["n"] != number
                faults.append(Fault(number, f"the line before it {'is missing' if gap else 'was changed'}"))
            elif before is None and entry["n"] != number:
                faults.append(Fault(number, "lines before it are missing"))
            before = _digest(line)
        newest = oldest + len(lines) - 1
        if head is None:
            if lines and self._head.exists() and not self._head.read_bytes():
                # a power failure leaves such a file; it does not mean that somebody changed the log
                return [*faults, Fault(newest, f"{HEAD} is empty: later lines may be missing")]
            return [*faults, Fault(newest, f"{HEAD} is missing")] if lines else faults
        if head.count > newest:
            faults.append(Fault(newest, f"{head.count - newest} lines after it are missing"))
        elif oldest <= head.count and _digest(lines[head.count - oldest]) != head.digest:
            faults.append(Fault(head.count, "it was changed"))
        return faults

    def _newest(self, descriptor: int, head: Head | None) -> Head:
        """The valid part of the log; the whole log is read only when the head does not suffice."""
        size = os.lseek(descriptor, 0, os.SEEK_END)
        tail = os.pread(descriptor, TAIL, max(0, size - TAIL))
        last = tail.split(b"\n")[-2:-1] if tail.endswith(b"\n") and tail.count(b"\n") > 1 else []
        if head and last and _digest(last[0]) == head.digest:
            return head
        lines = [*_lines_of(self._older), *_whole_lines(descriptor)]
        oldest = _oldest(lines, head)
        return Head(oldest + len(lines) - 1, _digest(lines[-1]) if lines else FIRST, oldest)

    def _lines(self) -> list[bytes]:
        return [*_lines_of(self._older), *_lines_of(self.path)]

    def _rotated(self) -> Head | None:
        """The head as it stands, after a log that has become too large is put in the place of the older one."""
        head = self._read_head()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size > LARGEST_BYTES:
                if head:  # first: after a cut in between, older lines than promised are there
                    with self.path.open("rb") as file:
                        oldest = _oldest([file.readline().rstrip(b"\n")], None)
                    head = Head(head.count, head.digest, oldest)
                    self._write_head(head)
                os.replace(self.path, self._older)
        return head

    @contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _read_head(self) -> Head | None:
        """The head; None where it is missing or cannot be read."""
        try:
            count, digest, *oldest = self._head.read_text(encoding="ascii").split()
            return Head(int(count), digest, int(oldest[0]) if oldest else 1)
        except (OSError, ValueError):
            return None

    def _write_head(self, head: Head) -> None:
        beside = self._head.with_name(f".{HEAD}.partial")
        with beside.open("w", encoding="ascii") as file:
            file.write(f"{head.count} {head.digest} {head.oldest}\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._head)


def _parsed(line: bytes) -> dict[str, Any]:
    """The entry on a line; empty for one that is none."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _oldest(lines: Sequence[bytes], head: Head | None) -> int:
    """The number of the first of `lines`: as the head says, unless there are earlier ones, or no head."""
    number = _parsed(lines[0]).get("n") if lines else None
    first = number if isinstance(number, int) and number > 0 else 1
    return min(first, head.oldest) if head else first


def _lines_of(path: Path) -> list[bytes]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    return text.split(b"\n")[:-1]  # what follows the last line end is a line whose writer was killed


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
