"""Telemetry on disk: SQLite, one row for each minute and release, without any text of prompts or answers.

A thread writes once a second, so that no answer waits for the disk. Data that cannot be written is kept in memory, up to
a limit of minutes, until it can: a full disk or a damaged file does not stop the server from answering.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.base.errors import CorruptError
from edgekit.field.telemetry.drift import DriftAlarm
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.minutes import SECONDS, Minute, Window, window
from edgekit.field.telemetry.observation import Observation

__all__ = ["FILE", "Store", "Window"]

FILE = "telemetry.sqlite"
EVERY_S = 1.0
SLOWEST_RETRY_S = 30.0
AHEAD_S = 60.0  # a time further in the future than this comes from a wrong clock
KEPT_MINUTES = 120  # in memory, while nothing can be written
KEPT_ALARMS = 256
PAGE = 4096
TABLES = """
CREATE TABLE IF NOT EXISTS minutes (minute INTEGER, release TEXT, body TEXT NOT NULL, PRIMARY KEY (minute, release))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alarms (time REAL NOT NULL, release TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS alarms_by_time ON alarms (time);
CREATE TABLE IF NOT EXISTS alive (pid INTEGER PRIMARY KEY, time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS notes (time REAL NOT NULL, text TEXT NOT NULL);
"""
DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
# the errors that a row of another program raises
FOREIGN = (ValueError, LookupError, TypeError, AttributeError, OverflowError)

Alarm = tuple[float, str, str]  # time, release, JSON


class DamagedError(Exception):
    """SQLite's own check found the file damaged."""


class Store:
    """The telemetry of a device in the file `path`, of at most `cap_mib`. Reading it writes nothing.

    `trouble` says why nothing can be written now (empty when all is well); `note` says what was repaired. All methods
    may be called from any thread, and none raises because of the disk. A file that cannot be read yields nothing, or a
    `CorruptError` with `strict`.
    """

    def __init__(self, path: Path, cap_mib: float = 16, *, every_s: float = EVERY_S) -> None:
        self.path = path
        self.cap_mib = cap_mib
        self.trouble = ""
        self.note = ""
        self.dropped = 0
        """Minutes and alarms that were dropped, because nothing could be written for too long."""
        self._every_s = every_s
        self._journal = path.with_name(f"{path.name}-wal")
        self._journal_cap = int(cap_mib * 2**20 / 8)
        # garbage collection may end a cancelled answer within any method
        self._lock = threading.RLock()
        self._writing = threading.Lock()
        self._minutes: dict[tuple[int, str], Minute] = {}
        self._alarms: deque[Alarm] = deque()
        self._beat: float | None = None
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def add(self, observation: Observation) -> None:
        """Count one answer."""
        with self._lock:
            self._minute(observation.time, observation.release).add(observation)
        self._begin()

    def sample(self, machine: Machine, release: str = "") -> None:
        """Add one reading of the machine, while `release` serves."""
        with self._lock:
            self._minute(machine.time, release).sample(machine)
        self._begin()

    def alarm(self, alarm: DriftAlarm, release: str = "") -> None:
        """Keep a drift alarm."""
        with self._lock:
            self._alarms.append((alarm.time, release, json.dumps(alarm.to_json())))
            self._bound()
        self._begin()

    def heartbeat(self, at: float | None = None) -> None:
        """Write a heartbeat of this process; called at least every 10 s while it serves."""
        with self._lock:
            self._beat = time.time() if at is None else at
        self._begin()

    def window(
        self, since: float, until: float, release: str | None = None, *, strict: bool = False
    ) -> Window:
        """The window of the minutes that overlap `since` to `until`, in Unix seconds; of all releases for None."""
        first, last = int(since // SECONDS), int(until // SECONDS)
        minutes: list[Minute] = []
        told: list[dict[str, Any]] = []
        beats: list[float] = []
        with self._writing:  # data that is being written would be counted twice, or not at all
            with self._lock:
                waiting = [(key, Minute.from_json(minute.to_json())) for key, minute in self._minutes.items()]
                kept = [a for a in self._alarms if since <= a[0] <= until and release in (None, a[1])]
                beats += [self._beat] if self._beat is not None else []
            which = "" if release is None else " AND release = :release"
            given = {"first": first, "last": last, "since": since, "until": until, "release": release}
            with self._guard(strict), self._reader() as reader:
                with self._guard(strict):  # separately: a bad minute must not hide the heartbeat
                    rows = f"SELECT body FROM minutes WHERE minute BETWEEN :first AND :last{which}"
                    minutes += [Minute.from_json(json.loads(body)) for (body,) in reader.execute(rows, given)]
                with self._guard(strict):
                    between = f"time BETWEEN :since AND :until{which}"
                    rows = f"SELECT time, release, body FROM alarms WHERE {between}"
                    told += [_told(alarm) for alarm in reader.execute(rows, given)]
                with self._guard(strict):
                    latest = max(until, time.time()) + AHEAD_S  # ignores heartbeats of a wrong clock
                    found = reader.execute("SELECT max(time) FROM alive WHERE time <= ?", (latest,))
                    beats += [float(at) for (at,) in found if at is not None]
        minutes += [m for (at, name), m in waiting if first <= at <= last and release in (None, name)]
        told = sorted([*told, *map(_told, kept)], key=lambda alarm: float(alarm["time"]))
        return window(minutes, since, until, release, told, max(beats, default=None))

    def releases(self, since: float, *, strict: bool = False) -> list[str]:
        """The releases in the file since that time, in Unix seconds."""
        query = "SELECT DISTINCT release FROM minutes WHERE minute >= ?"
        return self._names(query, (since // SECONDS,), strict)

    def latest_releases(self, minutes: int, *, strict: bool = False) -> list[str]:
        """The releases in the last `minutes` minutes of the file, the newest first."""
        return self._names(
            "WITH told AS (SELECT release, minute FROM minutes WHERE minute <= :latest) "
            "SELECT release FROM told WHERE minute >= (SELECT max(minute) FROM told) - :minutes GROUP BY release "
            "ORDER BY max(minute) DESC, count(*) DESC",
            {"minutes": minutes, "latest": (time.time() + AHEAD_S) // SECONDS},
            strict,
        )

    def series(
        self, since: float, until: float, release: str | None, *, step_s: int = SECONDS, strict: bool = False
    ) -> list[Window]:
        """The steps of `step_s` seconds on disk from `since` to `until`, oldest first, without alarms.

        They are of one release, or of all for None. `step_s` is a multiple of a minute; a step with no minute on disk is
        left out.
        """
        rows = (
            "SELECT minute, body FROM minutes WHERE minute BETWEEN ? AND ? AND release = coalesce(?, release) "
            "ORDER BY minute"
        )
        steps: dict[int, list[Minute]] = {}
        with self._guard(strict), self._reader() as reader:
            for at, body in reader.execute(rows, (int(since // SECONDS), int(until // SECONDS), release)):
                steps.setdefault(at * SECONDS // step_s, []).append(Minute.from_json(json.loads(body)))
        return [
            window(minutes, step * step_s, (step + 1) * step_s, release, [], None)
            for step, minutes in steps.items()
        ]

    def flush(self) -> bool:
        """Write pending data; False when it could not be written, and `trouble` says why."""
        with self._writing:
            with self._lock:
                minutes, self._minutes = self._minutes, {}
                alarms, self._alarms = self._alarms, deque()
                beat = self._beat
            try:
                self._write(minutes, alarms, beat)
            except Exception as error:  # noqa: BLE001 (answers must go on, whatever fails here)
                self._give_back(minutes, alarms)
                self.trouble = (
                    f"{self.path} cannot be written: {error}; the newest minutes are kept in memory."
                )
                if _damaged(error):  # else keep the connection: on a full disk no new one can be opened
                    self._disconnect()
                    self._move_aside(str(error))
                return False
            with self._lock:
                if self._beat == beat:
                    self._beat = None
            self.trouble = ""
            return True

    def close(self) -> None:
        """Write pending data and close the file."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._waits:
            self.flush()
        with self._writing:
            self._disconnect()

    @property
    def _waits(self) -> bool:
        return bool(self._minutes or self._alarms or self._beat is not None)

    def _minute(self, at: float, release: str) -> Minute:
        key = (int(at // SECONDS), release)
        if key not in self._minutes:
            self._minutes[key] = Minute()
            self._bound()
        return self._minutes[key]

    def _bound(self) -> None:
        while len(self._minutes) > KEPT_MINUTES:
            del self._minutes[min(self._minutes)]
            self.dropped += 1
        while len(self._alarms) > KEPT_ALARMS:
            self._alarms.popleft()
            self.dropped += 1

    def _give_back(self, minutes: dict[tuple[int, str], Minute], alarms: deque[Alarm]) -> None:
        with self._lock:
            self._alarms.extendleft(reversed(alarms))
            for key, minute in minutes.items():
                if key in self._minutes:
                    minute.merge(self._minutes[key])
                self._minutes[key] = minute
            self._bound()

    def _begin(self) -> None:
        if self._thread is None and not self._stop.is_set():
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="telemetry-store", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        pause = self._every_s
        while not self._stop.wait(pause):
            if self._waits:
                pause = self._every_s if self.flush() else min(2 * pause, max(self._every_s, SLOWEST_RETRY_S))

    def _write(
        self, minutes: dict[tuple[int, str], Minute], alarms: deque[Alarm], beat: float | None
    ) -> None:
        connection = self._connected()
        with connection:  # one transaction, rolled back as a whole
            connection.execute("BEGIN IMMEDIATE")
            for (at, release), minute in minutes.items():
                found = connection.execute(
                    "SELECT body FROM minutes WHERE minute = ? AND release = ?", (at, release)
                ).fetchone()
                whole = minute
                if found:  # written earlier by this process, or by another one
                    with contextlib.suppress(*FOREIGN):  # a row that is not telemetry is replaced
                        whole = Minute.from_json(json.loads(found[0]))
                        whole.merge(minute)
                body = json.dumps(whole.to_json(), separators=(",", ":"))
                connection.execute("INSERT OR REPLACE INTO minutes VALUES (?, ?, ?)", (at, release, body))
            connection.executemany("INSERT INTO alarms VALUES (?, ?, ?)", alarms)
            if beat is not None:
                connection.execute("INSERT OR REPLACE INTO alive VALUES (?, ?)", (os.getpid(), beat))
                connection.execute(
                    "DELETE FROM alive WHERE time < ? OR time > ?", (beat - 86_400, beat + AHEAD_S)
                )
            self._shrink(connection)
        with contextlib.suppress(
            sqlite3.Error, OSError
        ):  # everything is written: later cleaning counts nothing twice
            connection.execute("PRAGMA incremental_vacuum").fetchall()
            if self._journal.stat().st_size > self._journal_cap:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def _shrink(self, connection: sqlite3.Connection) -> None:
        """Drop the oldest minutes, a tenth at a time, until the file and its journal fit the cap."""
        budget = int(self.cap_mib * 2**20 * 3 / 4 / PAGE)
        while True:
            pages, free = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count")
            )
            rows = (
                connection.execute("SELECT count(*) FROM minutes").fetchone()[0]
                if pages - free > budget
                else 0
            )
            if not rows:
                return
            newest_gone = connection.execute(
                "SELECT minute FROM minutes ORDER BY minute LIMIT 1 OFFSET ?", (rows // 10,)
            ).fetchone()[0]
            connection.execute("DELETE FROM minutes WHERE minute <= ?", (newest_gone,))
            connection.execute("DELETE FROM alarms WHERE time < ?", ((newest_gone + 1) * SECONDS,))

    def _connected(self) -> sqlite3.Connection:
        if self._connection is not None and self._inode == self._inode_now():
            return self._connection
        self._disconnect()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=5, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA cache_size = -64")  # KiB
            connection.execute("PRAGMA wal_autocheckpoint = 64")
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise DamagedError(f"the file is damaged: {verdict}")
            connection.executescript(TABLES)
            if self.note:
                connection.execute("INSERT INTO notes VALUES (?, ?)", (time.time(), self.note))
        except BaseException:
            connection.close()
            raise
        self._connection, self._inode = connection, self._inode_now()
        return connection

    def _inode_now(self) -> int:
        """The identity of the file at the path: another process may have moved a damaged one aside."""
        try:
            return self.path.stat().st_ino
        except OSError:
            return 0

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _move_aside(self, why: str) -> None:
        """Rename a damaged file to a free name, so that a new one can be created."""
        names = (f"{self.path.name}.damaged{number}" for number in ("", *map("-{}".format, range(2, 1000))))
        free = (self.path.with_name(name) for name in names)
        aside = next((path for path in free if not path.exists()), None)
        if aside is None:
            return
        with contextlib.suppress(OSError):
            os.replace(self.path, aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self.note = (
                f"The telemetry file was damaged ({why}). It was moved to {aside}, and a new one was created."
            )

    def _names(self, query: str, values: Sequence[float] | Mapping[str, float], strict: bool) -> list[str]:
        found: list[str] = []
        with self._guard(strict), self._reader() as reader:
            found += [str(name) for (name,) in reader.execute(query, values)]
        return found

    @contextlib.contextmanager
    def _guard(self, strict: bool) -> Iterator[None]:
        """Skip data that cannot be read; with `strict`, raise `CorruptError` if the file exists."""
        try:
            yield
        except (sqlite3.Error, OSError, *FOREIGN) as error:
            if strict and self._there():
                known = isinstance(error, sqlite3.Error | OSError)
                why = (
                    str(error) if known else f"it holds a row that is not telemetry ({type(error).__name__})"
                )
                raise CorruptError(
                    f"{self.path} cannot be read: {why}.",
                    f"Correct its permissions, or move it away (mv {self.path} {self.path}.damaged); "
                    "`edgekit serve` then creates a new one.",
                ) from error

    def _there(self) -> bool:
        """Whether the file exists, or cannot be seen."""
        try:
            self.path.stat()
        except OSError as error:
            return not isinstance(error, FileNotFoundError)
        return True

    @contextlib.contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """A separate read-only connection, so that reading needs no write permission and changes nothing."""
        address = f"{self.path.resolve().as_uri()}?mode=ro"
        connection = sqlite3.connect(address, uri=True, timeout=5)
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.OperationalError:  # a read-only folder: there is no journal to wait for
            connection.close()
            connection = sqlite3.connect(f"{address}&immutable=1", uri=True)
        try:
            yield connection
        finally:
            connection.close()


def _told(alarm: Alarm) -> dict[str, Any]:
    """An alarm in the form of a window; raises one of `FOREIGN` for a row that is not an alarm."""
    at, release, body = alarm
    return {**json.loads(body), "time": float(at), "release": release}


def _damaged(error: Exception) -> bool:
    """Whether SQLite reports that the file itself is damaged, unlike a full disk or one foreign row."""
    code = getattr(error, "sqlite_errorcode", 0) if isinstance(error, sqlite3.Error) else 0
    return isinstance(error, DamagedError) or code & 0xFF in DAMAGED
