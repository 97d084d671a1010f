"""Reads incidents again and again at little cost: what has not changed on the disk is not read anew."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass

from edgekit.app.views.connection import NoStatus, UrlConnection
from edgekit.app.views.evidence import Plot, Series, figures, unheard
from edgekit.app.views.incident import Shown, Source, read_document, read_list, read_one
from edgekit.base.errors import EdgekitError
from edgekit.base.texts import one_line
from edgekit.field.incidents.incidents import Incident

FRESH_S = 10.0  # what stayed as it was is read anew after so long, a device over SSH not before
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

    source: Source
    number: int | None = None
    everything: bool = False


@dataclass(frozen=True)
class Found:
    """What was read: the list, or one incident with its plot; `trouble` says what failed, `hint` what to do next.

    `note` says what the list alone does not tell. After a failure the last that was read stays, with the trouble.
    """

    incidents: tuple[Incident, ...] = ()
    shown: Shown | None = None
    plot: Plot | None = None
    trouble: str = ""
    hint: str = ""
    note: str = ""


class Reader:
    """Reads for one screen, one caller at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: Wanted | None = None
        self._found: Found | None = None
        self._seen: tuple[object, ...] = ()
        self._at = 0.0
        self._series: Series | None = None
        self._connection: UrlConnection | None = None

    def forget(self) -> None:
        """Read everything anew the next time."""
        self._at = 0.0

    def read(self, wanted: Wanted, now: float) -> Found:
        """What is wanted, as it is now. Never raises."""
        with self._lock:
            seen = () if wanted.source.host or wanted.source.by_url else _seen(wanted.source)
            fresh = wanted == self._wanted and seen == self._seen and 0 <= now - self._at < FRESH_S
            if self._found is not None and fresh:
                return self._found
            if wanted.source.device != (self._wanted.source.device if self._wanted else None):
                self._series = self._connection = None
            before = self._found if wanted == self._wanted else None
            self._wanted, self._seen, self._at = wanted, seen, now
            try:
                self._found = self._read(wanted, now)
            except Exception as error:  # noqa: BLE001 - whatever a store holds, the screen goes on
                told = (f"Reading failed: {type(error).__name__}: {error}.", "edgekit doctor")
                message, hint = (error.message, error.hint) if isinstance(error, EdgekitError) else told
                kept = before or Found()
                self._found = Found(kept.incidents, kept.shown, kept.plot, one_line(message), one_line(hint))
            return self._found

    def _read(self, wanted: Wanted, now: float) -> Found:
        source = wanted.source
        if source.by_url:
            return self._by_url(wanted, now)
        if wanted.number is None:
            incidents = read_list(source, everything=wanted.everything)
            folder = None if source.host else source.folder
            return Found(incidents, note="" if folder is None else unheard(folder, now))
        shown = read_one(source, wanted.number)
        if source.host or source.folder is None:
            return Found(
                shown=shown, plot=figures(shown, "Measurements of another device are kept on that device.")
            )
        self._series = self._series or Series(source.folder)
        return Found(shown=shown, plot=self._series.plot(shown, now))

    def _by_url(self, wanted: Wanted, now: float) -> Found:
        """What the status of a device tells of its open incidents."""
        source, number = wanted.source, wanted.number
        assert source.device is not None
        self._connection = self._connection or UrlConnection(source.device)
        ssh = f"To see all of it and to change it, name the device as {source.name}=ssh:USER@HOST."
        try:
            status = self._connection.ask(now, URL_WINDOW_S)
        except NoStatus as error:
            return Found(trouble=f"{source.name} is LOST: {error.why}.", hint=f"{error.hint}. {ssh}")
        found = {one.id: one for row in status.releases for one in row.incidents}
        if number is None:
            none = "" if found else "No open incidents.\n"
            note = f"{none}{source.name} is read by its URL, which tells its open incidents. {ssh}"
            return Found(tuple(found.values()), note=note)
        if number not in found:
            return Found(trouble=f"Incident {number} is not open on {source.name}.", hint=ssh)
        rules = {rule.get("key"): rule for rule in status.rules}
        values = asdict(found[number])
        document = {**values, "incident": values, "rule": rules.get(found[number].rule)}
        shown = read_document(document, source)
        return Found(shown=shown, plot=figures(shown, f"Its measurements are on the device. {ssh}"))


def _seen(source: Source) -> tuple[object, ...]:
    """Changes whenever a file that is read does."""
    found: list[object] = []
    for name in FILES:
        try:
            stat = ((source.folder or source.state) / name).stat()
            found.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)
