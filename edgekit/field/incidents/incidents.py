"""Incidents of a device: OPEN, ACKNOWLEDGED, RESOLVED, with who and why for every change, in SQLite.

    OPEN ──acknowledge──► ACKNOWLEDGED ──┐
      └──────── resolve, close ──────────┴──► RESOLVED

Silence is not a state: a silenced incident keeps its state, and is reported again when the silence ends. Every change
is written to the audit log first, so a change that is not in the log was never made.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit.base.errors import ConfigError, CorruptError, StageError
from edgekit.field.incidents.audit import Audit
from edgekit.field.incidents.rules import AlertState, Change
from edgekit.field.incidents.words import sentence

FILE = "incidents.sqlite"
VERSION = 1
State = Literal["OPEN", "ACKNOWLEDGED", "RESOLVED"]
TABLES = """
create table if not exists incidents (
    id integer primary key, rule text not null, subject text not null, kind text not null, severity text not null,
    action text not null, release text not null, what text not null, since real not null, opened real not null,
    state text not null, silenced_until real, resolved real, acted integer not null default 0, rule_json text not null);
create unique index if not exists one_open on incidents (rule, subject) where state != 'RESOLVED';
create table if not exists changes (
    incident integer not null, time real not null, who text not null, what text not null, why text not null);
create index if not exists changes_of on changes (incident);
create table if not exists alerts (rule text not null, subject text not null, body text not null,
    primary key (rule, subject));
"""


@dataclass(frozen=True)
class Incident:
    """An incident on a device: one sentence on what is wrong, the rule that opened it, and its state.

    `subject` is the release or `device`. `since` is when the trouble began and `opened` when the incident was opened;
    these, `silenced_until` and `resolved` are Unix seconds, None where they do not apply. `acted` says whether the
    automatic action was done.
    """

    id: int
    rule: str
    subject: str
    kind: str
    severity: str
    action: str
    release: str
    what: str
    since: float
    opened: float
    state: State
    silenced_until: float | None
    resolved: float | None
    acted: bool

    def silenced(self, now: float) -> bool:
        """Whether notifications of it are silenced at `now`."""
        return self.silenced_until is not None and now < self.silenced_until

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


FIELDS = tuple(Incident.__dataclass_fields__)
COLUMNS = ", ".join(FIELDS)
CHANGE = ("time", "who", "what", "why")


class Incidents:
    """The incidents in a state folder; several processes and threads may use it at once.

    Each method raises `StageError` when nothing can be written and `CorruptError` for a file that is not a database.
    """

    def __init__(self, state: Path) -> None:
        self.path = state / FILE
        self.audit = Audit(state)

    def open(self, change: Change, *, who: str) -> Incident | None:
        """Open an incident for an alert; None when its rule and subject already have an open one.

        A silence of the same rule and subject applies to the new incident too.
        """
        rule, what = change.rule, sentence(change)
        with self._changing() as db:
            if _under_way(db, rule.key, change.subject):
                return None
            (newest,) = db.execute("select coalesce(max(id), 0) from incidents").fetchone()
            number = max(newest, self._newest_evidence()) + 1
            (silence,) = db.execute(
                "select max(silenced_until) from incidents where rule = ? and subject = ? and silenced_until > ?",
                (rule.key, change.subject, change.time),
            ).fetchone()
            self._note(db, number, who, "opened", what, change.time)
            values = (
                number, rule.key, change.subject, rule.kind, rule.severity, rule.action, change.release, what,
                change.since, change.time, "OPEN", silence, None, 0, rule.model_dump_json(),
            )  # fmt: skip
            db.execute(f"insert into incidents ({COLUMNS}, rule_json) values ({', '.join('?' * 15)})", values)
            return _get(db, number)

    def resolve(self, change: Change, *, who: str) -> Incident | None:
        """Resolve the incident of an alert that has ended; None when a person closed it before."""
        with self._changing() as db:
            incident = _under_way(db, change.rule.key, change.subject)
            if incident is None:
                return None
            self._end(
                db,
                incident,
                who,
                "resolved",
                change.why or "the reading is within its limit again",
                change.time,
            )
            return _get(db, incident.id)

    def acknowledge(self, number: int, *, who: str, why: str, now: float | None = None) -> Incident:
        """Note that a person has seen the incident and is working on it. Raises `ConfigError` for a resolved one."""
        with self._changing() as db:
            self._live(db, number)
            self._note(db, number, who, "acknowledged", why, now)
            db.execute("update incidents set state = 'ACKNOWLEDGED' where id = ?", (number,))
            return _get(db, number)

    def silence(self, number: int, *, until: float, who: str, why: str, now: float | None = None) -> Incident:
        """Send no notifications of it and take no automatic action before `until`, in Unix seconds.

        Then it is reported again. Raises `ConfigError` for a resolved incident, and for a time in the past.
        """
        if until <= (time.time() if now is None else now):
            raise ConfigError("A silence must end in the future. Nothing was changed.", "Try --for 2h.")
        with self._changing() as db:
            self._live(db, number)
            self._note(db, number, who, "silenced", why, now, until=until)
            db.execute("update incidents set silenced_until = ? where id = ?", (until, number))
            return _get(db, number)

    def close(self, number: int, *, who: str, why: str, now: float | None = None) -> Incident:
        """Close it by hand. If the reading stays beyond the limit, the rule opens a new incident after its `for` time."""
        with self._changing() as db:
            self._end(db, self._live(db, number), who, "closed", why, now)
            return _get(db, number)

    def end_silences(self, now: float, *, who: str) -> list[Incident]:
        """The open incidents whose silence has just ended; each is returned once."""
        over = "state != 'RESOLVED' and silenced_until <= ?"
        if not self._rows(f"select id from incidents where {over}", now):
            return []
        with self._changing() as db:
            ended = [row[0] for row in db.execute(f"select id from incidents where {over}", (now,))]
            for number in ended:
                self._note(db, number, who, "silence ended", "", now)
                db.execute("update incidents set silenced_until = null where id = ?", (number,))
            return [_get(db, number) for number in ended]

    def acted(self, number: int, *, who: str, what: str, why: str, now: float | None = None) -> None:
        """Record that its automatic action was done, and the result; the action is not repeated."""
        with self._changing() as db:
            self._note(db, number, who, what, why, now)
            db.execute("update incidents set acted = 1 where id = ?", (number,))

    def find(self, *, everything: bool = False) -> list[Incident]:
        """The open incidents, or all with `everything`: critical ones first, then the newest."""
        where = "" if everything else "where state != 'RESOLVED'"
        rows = self._rows(
            f"select {COLUMNS} from incidents {where} "
            "order by state = 'RESOLVED', severity != 'critical', opened desc, id desc"
        )
        return [_incident(row) for row in rows]

    def get(self, number: int) -> Incident:
        """One incident. Raises `ConfigError` when no incident has that number."""
        for row in self._rows(f"select {COLUMNS} from incidents where id = ?", number):
            return _incident(row)
        raise _unknown(number)

    def rule(self, number: int) -> dict[str, Any]:
        """The complete rule that opened it, as it was at that time."""
        found: dict[str, Any] = json.loads(
            self._rows("select rule_json from incidents where id = ?", number)[0][0]
        )
        return found

    def timeline(self, number: int) -> list[dict[str, Any]]:
        """Every change of one incident, oldest first: `time`, `who`, `what` and `why`."""
        rows = self._rows(
            "select time, who, what, why from changes where incident = ? order by rowid", number
        )
        return [dict(zip(CHANGE, row, strict=True)) for row in rows]

    def changes_after(self, cursor: int) -> list[tuple[int, Incident, dict[str, Any]]]:
        """Every change after the one numbered `cursor`, with its number and its incident as it is now."""
        rows = self._rows(
            f"select changes.rowid, time, who, changes.what, why, {', '.join('incidents.' + n for n in FIELDS)} "
            "from changes join incidents on incidents.id = incident where changes.rowid > ? order by changes.rowid",
            cursor,
        )
        return [(row[0], _incident(row[5:]), dict(zip(CHANGE, row[1:5], strict=True))) for row in rows]

    def last_change(self) -> int:
        """The number of the newest change, 0 before the first."""
        rows = self._rows("select coalesce(max(rowid), 0) from changes")
        return int(rows[0][0]) if rows else 0

    def last_end(self, kind: str, subject: str) -> float:
        """When the last incident of a kind and subject was resolved, in Unix seconds; 0 when there was none."""
        rows = self._rows("select max(resolved) from incidents where kind = ? and subject = ?", kind, subject)
        return float(rows[0][0] or 0.0) if rows else 0.0

    def alert_states(self) -> Sequence[AlertState]:
        """The state of the rules when `keep` was last called."""
        return [AlertState(**json.loads(row[0])) for row in self._rows("select body from alerts")]

    def keep(self, states: Sequence[AlertState]) -> None:
        """Save the state of the rules for the next watcher."""
        with self._changing() as db:
            db.execute("delete from alerts")
            db.executemany(
                "insert into alerts values (?, ?, ?)",
                [(state.rule, state.subject, json.dumps(state.to_dict())) for state in states],
            )

    def set_aside(self) -> Path:
        """Rename a damaged database, in the same folder, and return its new path."""
        moment = int(time.time())
        names = (self.path.with_name(f"{FILE}.damaged-{moment + more}") for more in itertools.count())
        aside = next(name for name in names if not name.exists())
        self.path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(FILE + suffix).unlink(missing_ok=True)
        return aside

    def _newest_evidence(self) -> int:
        """The highest number of an evidence file, so that no evidence is overwritten after a database was set aside."""
        found = (path.stem for path in (self.path.parent / "evidence").glob("*.json"))
        return max((int(stem) for stem in found if stem.isdecimal()), default=0)

    def _live(self, db: sqlite3.Connection, number: int) -> Incident:
        incident = _get(db, number)
        if incident.state == "RESOLVED":
            raise ConfigError(
                f"Incident {number} is already resolved. Nothing was changed.",
                "`edgekit incident list` shows the open incidents.",
            )
        return incident

    def _end(
        self, db: sqlite3.Connection, incident: Incident, who: str, what: str, why: str, now: float | None
    ) -> None:
        moment = time.time() if now is None else now
        self._note(db, incident.id, who, what, why, moment)
        db.execute(
            "update incidents set state = 'RESOLVED', resolved = ? where id = ?", (moment, incident.id)
        )

    def _note(
        self,
        db: sqlite3.Connection,
        number: int,
        who: str,
        what: str,
        why: str,
        now: float | None,
        **more: Any,
    ) -> None:
        moment = time.time() if now is None else now
        self.audit.append(who=who, what=what, why=why, incident=number, at=moment, **more)
        db.execute("insert into changes values (?, ?, ?, ?, ?)", (number, moment, who, what, why))

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        if not self.path.exists():  # no incident yet: reading must not create a file
            return []
        with self._connected() as db:
            return db.execute(query, values).fetchall()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """A transaction of one writer; the audit log is written inside it, so both have one order."""
        with self._connected() as db:
            db.execute("begin immediate")
            try:
                yield db
            except BaseException:
                db.rollback()
                raise
            db.commit()

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        db: sqlite3.Connection | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=10.0, isolation_level=None)
            version = db.execute("pragma user_version").fetchone()[0]
            if version > VERSION:
                raise StageError(
                    f"{self.path} was written by a newer edgekit (file version {version}). Nothing was changed.",
                    "Install that edgekit version again, or use another --state.",
                )
            if version != VERSION:
                db.execute("pragma journal_mode = wal")
                db.executescript(TABLES)
                db.execute(f"pragma user_version = {VERSION}")
            yield db
        except (OSError, sqlite3.OperationalError) as error:
            raise StageError(
                f"The incidents in {self.path.parent} cannot be read or written: {error}. Nothing was changed.",
                "Check the folder's permissions and the free disk space.",
            ) from error
        except sqlite3.DatabaseError as error:
            raise CorruptError(
                f"{self.path} is damaged: {error}.", f"Move it away: mv {self.path} {self.path}.damaged"
            ) from error
        finally:
            if db is not None:
                db.close()


def _incident(row: Sequence[Any]) -> Incident:
    values = dict(zip(FIELDS, row, strict=True))
    return Incident(**{**values, "acted": bool(values["acted"])})


def _get(db: sqlite3.Connection, number: int) -> Incident:
    row = db.execute(f"select {COLUMNS} from incidents where id = ?", (number,)).fetchone()
    if row is None:
        raise _unknown(number)
    return _incident(row)


def _under_way(db: sqlite3.Connection, rule: str, subject: str) -> Incident | None:
    row = db.execute(
        f"select {COLUMNS} from incidents where rule = ? and subject = ? and state != 'RESOLVED'",
        (rule, subject),
    ).fetchone()
    return None if row is None else _incident(row)


def _unknown(number: int) -> ConfigError:
    return ConfigError(
        f"There is no incident {number}.", "`edgekit incident list --all` shows all incidents."
    )
