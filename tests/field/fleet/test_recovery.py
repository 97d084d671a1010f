"""Whether a device is well after a rollback: what each look saw, and the verdict of the minute."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from device_documents import incident, status
from field_state import answers, versions

from edgekit.base.command import Command, Outcome
from edgekit.field.fleet.device import Device
from edgekit.field.fleet.recovery import WATCH_S, DeviceHealth, Recovery, read_health
from edgekit.field.telemetry.store import Store


def here(state: Path) -> Device:
    return Device("here", state=state)


WELL = DeviceHealth("old", 2.0, 30, 0, 0.4)


@pytest.mark.parametrize(
    ("last", "word", "why"),
    [
        (WELL, "HEALTHY", "answered 20 requests"),
        (replace(WELL, requests=10), "NOT PROVEN", "received no requests"),
        (replace(WELL, errors=5), "STILL BAD", "5 of 20 requests failed"),
        (replace(WELL, in_use="new"), "STILL BAD", "new answers"),
        (replace(WELL, silent_s=31.0), "STILL BAD", "no server is running"),
        (replace(WELL, silent_s=None), "STILL BAD", "never heard from"),
        (replace(WELL, incidents=((13, "It is slow."),)), "STILL BAD", "incident 13"),
        (DeviceHealth(trouble="No route to host."), "STILL BAD", "No route"),
    ],
)
def test_the_verdict_of_a_minute(last: DeviceHealth, word: str, why: str) -> None:
    watch = Recovery(here(Path("/state")), "old", 1000.0).taking(DeviceHealth("old", 1.0, 10, 0)).taking(last)
    assert watch.verdict(1000.0 + WATCH_S - 1) is None and watch.left_s(1030.0) == WATCH_S - 30
    verdict = watch.verdict(1000.0 + WATCH_S)
    assert verdict is not None and verdict.word == word and why in verdict.why
    assert bool(verdict.next) == (word != "HEALTHY") and verdict.words.startswith(f"{word}: ")


def test_looks_at_a_device_that_answers_and_at_one_that_does_not(tmp_path: Path) -> None:
    state, now = tmp_path / "state", time.time()
    old, new = versions(state, ["well", "slow"], now - 600)
    assert read_health(here(state), old, 1.0, now).silent_s is None
    store = Store(state / "telemetry.sqlite", every_s=3600)
    answers(store, new, now, count=4)
    store.heartbeat(now)
    store.flush()
    found = read_health(here(state), new, 5.0, now)
    assert (found.in_use, found.silent_s, found.requests) == (new, 0.0, 4) and found.ttft_p95_s
    assert read_health(here(state), old, 5.0, now).requests == 0
    assert read_health(here(state), new, 100.0, now + 90).silent_s == 90.0
    (state / "incidents.sqlite").write_bytes(b"no database at all")
    assert "damaged" in read_health(here(state), new, 5.0, now).trouble
    store.close()


@pytest.mark.parametrize("name", ["last_seen", "requests", "errors", "id"])
@pytest.mark.parametrize("value", ["many", float("nan"), float("inf"), [1]])
def test_a_number_that_is_none_is_never_taken_for_well(
    name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = incident(1, release="old", what="It is slow.")
    told = json.loads(status(one, release="old", requests=30))
    monkeypatch.setattr(Command, "run", lambda self, timeout_s=None: Outcome(self, 0, told))
    device = Device("line-3", host="line-3")
    seen = read_health(device, "old", 5.0, 0.0)
    assert (seen.in_use, seen.silent_s, seen.requests, seen.errors) == ("old", 0.0, 30, 0)
    assert seen.incidents == ((1, "It is slow."),)
    row = told["releases"][0]
    row["incidents"] = [{**row["incidents"][0], "id": value}] if name == "id" else []
    row[name] = value if name != "id" else 0
    verdict = Recovery(device, "old", 0.0).taking(read_health(device, "old", 5.0, 0.0)).verdict(WATCH_S)
    assert verdict is not None and verdict.word == "STILL BAD"
