"""The versions in use: the slots in `state.json`, and `log.jsonl`, which says who changed them, when and why.

`state.json` is replaced by one rename and is authoritative. It holds the newest line of the log, so that a power failure
between the two writes loses no line. Each line holds the slots after it, so that the log can restore `state.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.base.errors import CorruptError
from edgekit.field.releases import disk

SCHEMA = "edgekit.slots/1"
TRIES = 3
TAIL = 1 << 16  # bytes of the log's end that are read for its newest line


@dataclass(frozen=True)
class Slots:
    """The versions in use, by name; `good` is in the order in which they were marked good, the last one current."""

    good: tuple[str, ...] = ()
    pending: str | None = None
    """The version on trial: it answers until it is marked good, has no tries left, or is judged bad."""
    tries: int = 0
    """Starts that the pending version has left."""
    bad: Mapping[str, str] = field(default_factory=dict)
    """Versions that were rejected, and why."""

    @property
    def current(self) -> str | None:
        """The last version that was marked good."""
        return self.good[-1] if self.good else None

    @property
    def previous(self) -> str | None:
        """The version that a rollback restores."""
        return self.good[-2] if len(self.good) > 1 else None

    @property
    def active(self) -> str | None:
        """The version that answers now: the pending one, else the current one."""
        return self.pending or self.current

    def trying(self, release: str) -> Slots:
        """`release` put on trial."""
        bad = {name: why for name, why in self.bad.items() if name != release}
        return replace(self, pending=release, tries=TRIES, bad=bad)

    def settled(self) -> Slots:
        """The pending version marked good."""
        if self.pending is None:
            return self
        good = (*(name for name in self.good if name != self.pending), self.pending)
        return replace(self, good=good, pending=None, tries=0)

    def without(self, release: str, why: str) -> Slots:
        """`release` taken out of use."""
        good = tuple(name for name in self.good if name != release)
        slots = replace(self, pending=None, tries=0) if release == self.pending else self
        return replace(slots, good=good, bad={**self.bad, release: why})


class Journal:
    """The two files; any process may read them at any time, and writers hold the lock of `Releases`."""

    def __init__(self, root: Path) -> None:
        self.state = root / "state.json"
        self.log = root / "log.jsonl"
        self._seen: tuple[int, ...] = ()
        self._slots = Slots()

    def read(self) -> Slots:
        """The slots now; takes one `stat` when nothing has changed since the last reading."""
        try:
            stat = self.state.stat()
            seen: tuple[int, ...] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        except OSError:
            seen = ()
        if not seen or seen != self._seen:
            self._slots = _slots(self._newest()["slots"])
            self._seen = seen
        return self._slots

    def serial(self) -> int:
        """The number of changes so far."""
        return int(self._newest()["serial"])

    def write(self, slots: Slots, *, what: str, release: str | None, who: str, why: str) -> None:
        """Replace the slots in one step, then append to the log."""
        newest = self._newest()
        if newest["serial"] > self._last_line().get("serial", 0):
            disk.append(
                self.log, json.dumps(newest, ensure_ascii=False)
            )  # a power failure came between state and log
        line = {
            "serial": newest["serial"] + 1,
            "time": time.time(),
            "who": who,
            "what": what,
            "release": release,
            "why": why,
            "slots": asdict(slots),
        }
        disk.write(self.state, json.dumps({"schema": SCHEMA, **line}, ensure_ascii=False, indent=1).encode())
        with contextlib.suppress(OSError):  # the state has the line; the next change adds it to the log
            disk.append(self.log, json.dumps(line, ensure_ascii=False))

    def lines(self) -> list[dict[str, Any]]:
        """Every change, oldest first, without incomplete lines."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        found = [line for line in map(_parsed, text.splitlines()) if line]
        newest = self._newest()
        return [*found, newest] if newest["serial"] > (found[-1]["serial"] if found else 0) else found

    def _newest(self) -> dict[str, Any]:
        """The newest change, from the state or else from the log; raises `CorruptError` when both are unreadable."""
        try:
            text = self.state.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            text = ""
        found = _parsed(text) or self._last_line()
        if not found and (text or self.log.exists()):
            raise CorruptError(
                f"{self.state} and {self.log} are damaged, so the version in use is unknown. The versions are unchanged.",
                "Move both files away and promote a version again.",
            )
        found.pop("schema", None)
        return found or {"serial": 0, "slots": {}}

    def _last_line(self) -> dict[str, Any]:
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
                tail = file.read().decode(errors="replace")
        except FileNotFoundError:
            return {}
        return next((line for line in map(_parsed, reversed(tail.splitlines())) if line), {})


def _parsed(text: str) -> dict[str, Any]:
    """One change, or nothing when `text` is incomplete."""
    try:
        line = json.loads(text)
        _slots(line["slots"])
        return line if isinstance(line["serial"], int) and isinstance(line, dict) else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _slots(values: Mapping[str, Any]) -> Slots:
    return Slots(**{**values, "good": tuple(values.get("good", ()))})
