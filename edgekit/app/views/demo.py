"""A recorded build and a recorded day of a device, shown as if they were here and now; `tools/record_demo.py` makes both.

`unpack` writes the day into a folder so that it ends now: the same files as a device has, but for the models. `Replay`
plays the build again and again, keeps the device alive, and has others beside it (`edgekit.app.views.demo_devices`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from edgekit.app.views.demo_devices import Here, Other, here_of, others_of
from edgekit.app.views.settings import Settings
from edgekit.base.artifacts import remove, write_json
from edgekit.base.clock import clock
from edgekit.base.errors import MissingPartError
from edgekit.base.events import Alert, StageFinished, StageStarted, from_json, jsonl_writer, to_json
from edgekit.build import runs
from edgekit.device.manifest import MANIFEST
from edgekit.field.incidents import evidence, incidents
from edgekit.field.incidents.audit import Audit
from edgekit.field.releases.slots import SCHEMA as SLOTS
from edgekit.field.telemetry import store as telemetry
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.minutes import SECONDS
from edgekit.field.telemetry.observation import Observation

SPEED = 20.0  # times as fast as it was: a whole build in a minute
REST_S = 10.0  # between two builds
LOOK_S = 0.2
AT_ONCE = 50  # readings and answers written together; the store keeps 120 minutes in memory
BEFORE_S = 600.0  # between the end of the build and its import
LOST_S = 45.0  # after so long one device answers no more
TIMES = frozenset(
    {
        "time", "since", "until", "opened", "resolved", "silenced_until", "captured", "last_seen", "at", "seen",
        "well_since",
    }
)  # fmt: skip
RECORDING = Path(__file__).resolve().parents[3] / "tools" / "demo"
"""In a clone of the repository; the installed package does without."""
SCHEMA = "edgekit.demo/1"
SINCE = "{since}"  # stands in a recorded sentence for the time of day


# The day


def read(part: str) -> dict[str, Any]:
    """One part of the recording: `build` (events), `bundle` (files) or `day` (what the stores of a device held).

    Raises `MissingPartError` where edgekit was installed without it.
    """
    path = RECORDING / f"{part}.json.gz"
    if not path.is_file():
        raise MissingPartError(
            "The recorded demo is not part of the installed package; nothing was started.",
            "Run `edgekit tui --demo` from a clone of the edgekit repository, or `edgekit tui` on your own data.",
        )
    document: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    assert document["schema"] == SCHEMA
    return document


def unpack(folder: Path, now: float | None = None) -> Settings:
    """Write the recorded bundle and day into `folder`, the day ending `now` (Unix seconds); returns where all is."""
    moment = time.time() if now is None else now
    bundle, day = read("bundle"), read("day")
    shift = moment // SECONDS * SECONDS - day["end"]  # whole minutes, which telemetry keeps
    found = Settings(folder / "cache", folder / "state", folder / "bundles", demo=True)
    found.cache_dir.mkdir(parents=True)
    switches = [shifted(line, shift) for line in day["switches"]]
    _bundle(found.bundles / bundle["name"], bundle["files"], switches[0]["time"])
    for name, manifest in day["manifests"].items():
        version = found.state / "releases" / "versions" / name
        _bundle(version, {**bundle["files"], MANIFEST: manifest}, switches[0]["time"])
        record = found.state / "releases" / "records" / name / "import.json"
        record.parent.mkdir(parents=True)
        write_json(record, shifted(day["imports"][name], shift))
    _switches(found.state / "releases", switches)
    build = _Build(found, 1.0)
    build.write_whole(switches[0]["time"] - build.seconds - BEFORE_S)
    _telemetry(found.state / telemetry.FILE, day, shift, moment)
    _incidents(found.state, day, shift)
    return found


def shifted(value: Any, by: float) -> Any:
    """`value` with each time in it `by` seconds later."""
    if isinstance(value, dict):
        return {key: _later(key, part, by) for key, part in value.items()}
    return [shifted(part, by) for part in value] if isinstance(value, list) else value


def _later(key: str, value: Any, by: float) -> Any:
    is_time = key in TIMES and isinstance(value, int | float) and not isinstance(value, bool)
    return value + by if is_time else shifted(value, by)


def _bundle(folder: Path, files: Mapping[str, str], written: float) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        os.utime(path, (written, written))


def _switches(root: Path, lines: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (root / "log.jsonl").write_text(text, encoding="utf-8")
    write_json(root / "state.json", {"schema": SLOTS, **lines[-1]})


def _telemetry(path: Path, day: Mapping[str, Any], shift: float, now: float) -> None:
    store = telemetry.Store(path, every_s=3600)
    for first in range(0, len(day["machine"]), AT_ONCE):
        for minute, release, rss_mib, load in day["machine"][first : first + AT_ONCE]:
            store.sample(Machine(minute * SECONDS + shift, rss_mib, None, None, load), release)
        for answer in day["answers"][first : first + AT_ONCE]:
            store.add(Observation(**shifted(answer, shift)))
        store.flush()
    store.heartbeat(now)
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        alarms = (
            (at + shift, release, json.dumps(shifted(body, shift))) for at, release, body in day["alarms"]
        )
        db.executemany("insert into alarms values (?, ?, ?)", alarms)


def _incidents(state: Path, day: Mapping[str, Any], shift: float) -> None:
    names = (*incidents.FIELDS, "rule_json")
    found = [shifted(dict(zip(names, row, strict=True)), shift) for row in day["incidents"]]
    told = {row["id"]: clock(row["since"], row["opened"]) for row in found}
    with contextlib.closing(sqlite3.connect(state / incidents.FILE)) as db, db:
        db.executescript(incidents.TABLES)
        db.execute(f"pragma user_version = {incidents.VERSION}")
        for row in found:
            values = [said(row[name], told[row["id"]]) for name in names]
            db.execute(
                f"insert into incidents ({', '.join(names)}) values ({', '.join('?' * len(names))})", values
            )
        for number, at, who, what, why in day["changes"]:
            line = (number, at + shift, who, what, said(why, told[number]))
            db.execute("insert into changes values (?, ?, ?, ?, ?)", line)
        for rule, subject, body in day["alerts"]:
            db.execute(
                "insert into alerts values (?, ?, ?)", (rule, subject, json.dumps(shifted(body, shift)))
            )
    audit = Audit(state)
    for entry in day["audit"]:  # through the log's own function, which chains the lines anew
        audit.append(**said(shifted(entry, shift), told[entry["incident"]]))
    for number, hour in told.items():
        document = day["evidence"].get(f"{number}.json")
        if document is not None:
            path = evidence.path_of(state, number)
            path.parent.mkdir(exist_ok=True)
            write_json(path, said(shifted(document, shift), hour))


def said(value: Any, hour: str) -> Any:
    """`value` with the time of day `hour` in its sentences."""
    if isinstance(value, dict):
        return {key: said(part, hour) for key, part in value.items()}
    if isinstance(value, list):
        return [said(part, hour) for part in value]
    return value.replace(SINCE, hour) if isinstance(value, str) else value


# What goes on


class Replay:
    """Plays while the demo is looked at; `settings` are the given ones with the other devices.

    The build belongs to this process, so that it counts as under way: an interrupt would end the process, only `close`
    ends the play.
    """

    def __init__(self, settings: Settings, speed: float = SPEED, *, lost_s: float = LOST_S) -> None:
        self._lost_s = lost_s
        self._began = time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo", daemon=True)
        day = read("day")
        self._build = _Build(settings, speed)
        self._here: Here = here_of(day, settings.state)
        self._others: list[Other] = others_of(day, self._build.model, settings.state.parent / "others")
        self.settings = replace(
            settings, devices=(*settings.devices, *(other.device for other in self._others))
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End what plays; what was written stays."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for other in self._others:
            other.close()
        self._here.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            now = time.time()
            with contextlib.suppress(OSError):  # the folder went: there is nobody to show it to
                self._build.play(now)
            self._here.live(now)
            for other in self._others:
                other.live(now)
            if now - self._began > self._lost_s:
                for other in self._others[-1:]:
                    other.close()
            self._stop.wait(LOOK_S)


class _Build:
    """The recorded build, written as a build that runs here writes it: to its events and its record."""

    def __init__(self, settings: Settings, speed: float) -> None:
        recorded, files = read("build"), read("bundle")
        self.seconds: float = recorded["seconds"]
        self._speed = speed
        self._events = [(line["time"], from_json(json.dumps(line))) for line in recorded["events"]]
        self._report: dict[str, Any] = json.loads(files["files"]["report.json"])
        self.model = str(self._report["model"])
        self._run = replace(
            runs.of_this_process(settings.cache_dir.absolute()),
            model=self.model,
            target=self._report["target"],
            data=str(json.loads(files["files"][MANIFEST])["data"]["name"]),
            out=(settings.bundles / files["name"]).absolute(),
            stages=tuple(event.stage for _, event in self._events if isinstance(event, StageStarted)),
            seconds={  # as played, for the time that is left
                event.stage: event.seconds / speed
                for _, event in self._events
                if isinstance(event, StageFinished)
            },
            seconds_expected=self.seconds / speed,
        )
        self._log = settings.cache_dir / runs.EVENTS
        self._write = jsonl_writer(self._log)
        self._recorder: runs.Recorder | None = None
        self._told = 0

    def write_whole(self, began: float) -> None:
        """Write it as one that began then, Unix seconds, and has ended."""
        lines = (to_json(replace(event, time=began + at)) + "\n" for at, event in self._events)
        self._log.write_text("".join(lines), encoding="utf-8")
        ended = replace(self._run, started=began, ended=began + self.seconds, outcome=self._report["verdict"])
        runs.Recorder(ended).expect(self.seconds)

    def play(self, now: float) -> None:
        """Write what is due."""
        if self._recorder is None:
            self._begin(now)
        assert self._recorder is not None
        began = self._recorder.run.started
        due = (now - began) * self._speed
        while self._told < len(self._events) and self._events[self._told][0] <= due:
            at, event = self._events[self._told]
            self._told += 1
            event = replace(event, time=began + at / self._speed)
            self._write(event)
            self._recorder.emit(event)
        if self._told == len(self._events):
            self._recorder.judge(self._report)  # writes once
            if now - began > self.seconds / self._speed + REST_S:
                self._recorder = None

    def _begin(self, now: float) -> None:
        remove(self._log)
        run = replace(self._run, started=now, seconds=dict(self._run.seconds))
        self._recorder, self._told = runs.Recorder(run), 0
        self._recorder.expect(self.seconds / self._speed)
        words = f"A recorded build, played {self._speed:g} times as fast; what it measured is as it was."
        self._write(Alert("info", words, time=now))
