"""A recorded build and a recorded day of a device, shown as if they were here and now; `tools/record_demo.py` makes both.

`unpack` writes them into a folder so that the day ends now, with the functions that a device uses: the same files as a
device has, but for the models. `edgekit.app.views.demo_replay` goes on from there.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.app.views.demo_build import RecordedBuild
from edgekit.app.views.settings import Settings
from edgekit.base.artifacts import write_json
from edgekit.base.errors import MissingPartError
from edgekit.device.manifest import MANIFEST
from edgekit.field.incidents import evidence
from edgekit.field.incidents.audit import Audit
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.incidents.readings import reading_of
from edgekit.field.incidents.rules import Change
from edgekit.field.releases.slots import SCHEMA as SLOTS
from edgekit.field.telemetry.drift import DriftAlarm
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.minutes import SECONDS
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import FILE, Store
from edgekit.targets.rules import Rule

AT_ONCE = 50  # readings and answers written together; the store keeps 120 minutes in memory
BEFORE_S = 600.0  # between the end of the build and its import
TIMES = ("time", "since")
RECORDING = Path(__file__).resolve().parents[3] / "tools" / "demo"
"""In a clone of the repository; the installed package does without."""


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
    return document


def unpack(folder: Path, now: float | None = None) -> Settings:
    """Write the recorded bundle and day into `folder`, the day ending `now` (Unix seconds); returns where all is."""
    moment = time.time() if now is None else now
    bundle, day = read("bundle"), read("day")
    shift = moment // SECONDS * SECONDS - day["end"]  # whole minutes, which telemetry keeps
    found = Settings(folder / "cache", folder / "state", folder / "bundles", demo=True)
    releases = found.state / "releases"
    switches = [later(line, shift) for line in day["switches"]]
    _bundle(found.bundles / bundle["name"], bundle["files"], switches[0]["time"])
    for name, manifest in day["manifests"].items():
        _bundle(releases / "versions" / name, {**bundle["files"], MANIFEST: manifest}, switches[0]["time"])
        record = releases / "records" / name
        record.mkdir(parents=True)
        write_json(record / "import.json", later(day["imports"][name], shift))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in switches)
    (releases / "log.jsonl").write_text(text, encoding="utf-8")
    write_json(releases / "state.json", {"schema": SLOTS, **switches[-1]})
    build = RecordedBuild(found, read("build"), bundle)
    build.write_whole(switches[0]["time"] - build.seconds - BEFORE_S)
    store = _telemetry(found.state, day, shift)
    for change in day["changes"]:
        _incident(found.state, store, later(change, shift))
    store.heartbeat(moment)
    store.close()
    return found


def later(values: Mapping[str, Any], by: float) -> dict[str, Any]:
    """`values` with their times `by` seconds later."""
    return {key: value + by if key in TIMES else value for key, value in values.items()}


def _bundle(folder: Path, files: Mapping[str, str], written: float) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        os.utime(path, (written, written))


def _telemetry(state: Path, day: Mapping[str, Any], shift: float) -> Store:
    store = Store(state / FILE, every_s=3600)
    for first in range(0, len(day["machine"]), AT_ONCE):
        for minute, release, rss_mib, load in day["machine"][first : first + AT_ONCE]:
            store.sample(Machine(minute * SECONDS + shift, rss_mib, None, None, load), release)
        for answer in day["answers"][first : first + AT_ONCE]:
            store.add(Observation(**later(answer, shift)))
        store.flush()
    for release, alarm in day["alarms"]:
        store.alarm(DriftAlarm(**later(alarm, shift)), release)
    store.flush()
    return store


class _Past(Audit):
    """An audit log whose lines were written when the change was made."""

    def append(self, *, who: str, what: str, why: str = "", **details: Any) -> dict[str, Any]:
        return super().append(who=who, what=what, why=why, time=details["at"], **details)


def _incident(state: Path, store: Store, told: Mapping[str, Any]) -> None:
    """Do again what was done to an incident."""
    incidents, now = Incidents(state), told["time"]
    incidents.audit = _Past(state)
    if told["kind"] == "acknowledged":
        incidents.acknowledge(told["incident"], who=told["who"], why=told["why"], now=now)
        return
    rule, release = Rule(**told["rule"]), told["release"]
    reading = reading_of(store.window(now - rule.window_s, now, release))
    change = Change(
        told["kind"], rule, told["subject"], release, now, told["since"], told["value"], reading, told["why"]
    )
    if change.kind == "opened":
        incident = incidents.open(change, who="watcher")
        bundle = state / "releases" / "versions" / release
        assert incident is not None
        evidence.capture(state, incident, rule.model_dump(), store, bundle=bundle, now=now)
    elif incident := incidents.resolve(change, who="watcher"):
        evidence.complete(state, incident, rule.model_dump(), store, now)
