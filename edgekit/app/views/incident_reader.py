"""Reads incidents again and again at little cost: what has not changed on the disk is not read anew."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgekit.app.views.evidence import Plot, figures, plot, unheard
from edgekit.base.errors import EdgekitError
from edgekit.base.texts import one_line
from edgekit.field.fleet.connection import NoStatus, UrlConnection
from edgekit.field.fleet.device import Device
from edgekit.field.fleet.incidents import WholeIncident, read_document, read_list, read_one
from edgekit.field.incidents.incidents import Incident

FRESH_S = 10.0  # what stayed as it was is read anew after so long, another device not before
FILES = (
    "incidents.sqlite",
    "incidents.sqlite-wal",
    "audit.jsonl",
    "audit.1.jsonl",
    "audit.head",
    "releases/log.jsonl",
    "evidence",
)
URL_WINDOW_S = 900.0


@dataclass(frozen=True)
class Wanted:
    """What is to be read: one incident, or the list, of those under way or of all."""

    device: Device
    number: int | None = None
    everything: bool = False


@dataclass(frozen=True)
class Found:
    """What was read: the list, or one incident with its plot; `trouble` says what failed, `hint` what to do next.

    `note` says what the list alone does not tell. After a failure the last that was read stays, with the trouble.
    """

    incidents: tuple[Incident, ...] = ()
    shown: WholeIncident | None = None
    plot: Plot | None = None
    trouble: str = ""
    hint: str = ""
    note: str = ""


class Reader:
    """Reads for one screen, one caller at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: Wanted | None = None
        self._found = Found()
        self._seen: tuple[object, ...] = ()
        self._at = 0.0

    def forget(self) -> None:
        """Read everything anew the next time."""
        self._at = 0.0

    def read(self, wanted: Wanted, now: float) -> Found:
        """What is wanted, as it is now. Never raises."""
        with self._lock:
            seen = _seen(wanted.device.folder) if wanted.device.is_here else ()
            if (wanted, seen) == (self._wanted, self._seen) and 0 <= now - self._at < FRESH_S:
                return self._found
            before = self._found if wanted == self._wanted else Found()
            self._wanted, self._seen, self._at = wanted, seen, now
            try:
                self._found = _by_url(wanted, now) if wanted.device.url else _read(wanted, now)
            except EdgekitError as error:
                self._found = _failed(before, error.message, error.hint)
            except Exception as error:  # noqa: BLE001 - whatever a store holds, the screen goes on
                told = f"Reading failed: {type(error).__name__}: {error}."
                self._found = _failed(before, told, "edgekit doctor")
            return self._found


def _failed(before: Found, trouble: str, hint: str) -> Found:
    return replace(before, trouble=one_line(trouble), hint=one_line(hint), note="")


def _read(wanted: Wanted, now: float) -> Found:
    device = wanted.device
    if wanted.number is None:
        incidents = read_list(device, everything=wanted.everything)
        return Found(incidents, note=unheard(device.folder, now) if device.is_here else "")
    shown = read_one(device, wanted.number)
    if device.is_here:
        return Found(shown=shown, plot=plot(shown, device.folder, now))
    return Found(shown=shown, plot=figures(shown, "Measurements of another device are kept on that device."))


def _by_url(wanted: Wanted, now: float) -> Found:
    """What the status of a device tells of its open incidents."""
    device, number = wanted.device, wanted.number
    ssh = f"To see all of it and to change it, name the device as {device.name}=ssh:USER@HOST."
    try:
        status = UrlConnection(device).ask(now, URL_WINDOW_S)
    except NoStatus as error:
        return Found(trouble=f"{device.name} is LOST: {error.why}.", hint=f"{error.hint}. {ssh}")
    found = {one.id: one for row in status.releases for one in row.incidents}
    if number is None:
        none = "" if found else "No open incidents.\n"
        note = f"{none}{device.name} is read by its URL, which tells its open incidents. {ssh}"
        return Found(tuple(found.values()), note=note)
    if number not in found:
        return Found(trouble=f"Incident {number} is not open on {device.name}.", hint=ssh)
    rules = {rule.get("key"): rule for rule in status.rules}
    values = asdict(found[number])
    shown = read_document({**values, "incident": values, "rule": rules.get(found[number].rule)}, device)
    return Found(shown=shown, plot=figures(shown, f"Its measurements are on the device. {ssh}"))


def _seen(state: Path) -> tuple[object, ...]:
    """Changes whenever a file that is read does."""
    found: list[object] = []
    for name in FILES:
        try:
            stat = (state / name).stat()
            found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)
