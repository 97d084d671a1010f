"""What the incident screen knows: from a real state folder, over SSH, and from stores that are damaged or missing."""

from __future__ import annotations

import sqlite3
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from field_state import BadHour

from edgekit.app.views import evidence, incident_reader
from edgekit.app.views.incident import (
    duration,
    is_over,
    label,
    length,
    state_words,
)
from edgekit.app.views.incident_reader import Reader, Wanted
from edgekit.app.views.rollback import plan, rollback
from edgekit.base.command import Command, Outcome
from edgekit.base.errors import ConfigError, CorruptError, EdgekitError
from edgekit.field.fleet.device import Device
from edgekit.field.fleet.incidents import read_list, read_one
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.store import Store


def here(state: Path) -> Device:
    return Device("here", state=state)


def number_of(state: Path, kind: str) -> int:
    return next(one.id for one in Incidents(state).find() if one.kind == kind)


def test_the_list_is_worst_first_and_says_for_how_long(hour: BadHour) -> None:
    state, now, _, new = hour
    entries = read_list(here(state))
    assert label(entries[0]) == "Failing requests" and len(entries) == 3
    assert entries[0].severity == "critical" and entries[0].release == new
    assert length(entries[0], now).startswith(("9 min", "10 min")) and state_words(entries[0], now) == "OPEN"
    silenced = replace(entries[0], silenced_until=now + 60)
    assert (
        state_words(silenced, now).startswith("OPEN, silenced until ")
        and state_words(silenced, now + 61) == "OPEN"
    )
    over = replace(silenced, state="RESOLVED", resolved=entries[0].since + 90)
    assert (
        state_words(over, now) == "RESOLVED"
        and duration(over, now).endswith("(1 min 30 s)")
        and is_over(over)
    )


def test_the_plot_shows_both_releases_and_the_limit(hour: BadHour) -> None:
    state, now, _, _ = hour
    shown = read_one(here(state), number_of(state, "latency"))
    plot = evidence.plot(shown, state, now)
    assert plot.line == 5.0 and plot.line_name == "limit" and plot.unit == "s" and not plot.figures
    assert len(plot.xs) >= 9 and min(plot.ys) > 5 and all(x >= shown.incident.since - 120 for x in plot.xs)
    assert len(plot.earlier) >= 25 and max(y for _, y in plot.earlier) < 5
    assert shown.incident.opened == plot.opened
    assert evidence.rule_words(shown) == "Time to first token (p95) above 5 s for 30 s, over 5 min 00 s"


def test_without_a_series_the_evidence_file_speaks(hour: BadHour, tmp_path: Path) -> None:
    state, now, _, _ = hour
    shown = read_one(here(state), number_of(state, "errors"))
    told = evidence.plot(shown, tmp_path, now)  # no telemetry there
    assert "There is no telemetry" in told.note and not told.xs
    assert any(line.startswith("Requests: ") and "(before: " in line for line in told.figures)
    integrity = replace(shown, rule={"metric": "digest_mismatches", "above": 0.0})
    assert "Changed files has no time series" in evidence.plot(integrity, state, now).note
    bare = replace(shown, evidence={})
    assert "no evidence file" in evidence.figures(bare, "Nothing.").note
    odd = {
        "during": {"requests": "many", "alarms": [3, {"words": "it\x1b[31m fell"}]},
        "left_out": {"machine": "no time"},
    }
    lines = evidence.figures(replace(shown, evidence=odd), "").figures
    assert not any("\x1b" in line for line in lines) and "machine was left out: no time" in lines


def test_a_drift_is_shown_by_the_signal_that_was_told(hour: BadHour) -> None:
    state, now, _, _ = hour
    shown = read_one(here(state), number_of(state, "errors"))
    alarms = [{"signal": "classes", "words": "x"}, {"signal": "confidence", "words": "It fell."}]
    drift = replace(
        shown, rule={"metric": "drift_alarms", "above": 0.0}, evidence={"during": {"alarms": alarms}}
    )
    plot = evidence.plot(drift, state, now)
    assert plot.name == "Answer confidence" and plot.ys[0] == pytest.approx(90.0) and plot.line is None
    assert evidence.plotted(replace(drift, evidence={})) == "drift_alarms"


def test_a_server_that_was_never_heard_from_is_told(tmp_path: Path) -> None:
    assert "was never heard from" in evidence.unheard(tmp_path, time.time())


def test_a_device_over_ssh_is_read_by_the_same_commands(
    hour: BadHour, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, now, _, new = hour
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ssh").write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    (folder / "edgekit").write_text(f'#!/bin/sh\nexec {sys.executable} -m edgekit.cli "$@"\n')
    for file in folder.iterdir():
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    source = Device("line-3", host="op@line-3", state=state)
    found = Reader().read(Wanted(source, number_of(state, "errors")), now)
    assert (
        found.shown is not None
        and found.shown.incident.release == new
        and "likely cause" in found.shown.changes[-1].mark
    )
    assert found.plot is not None and found.plot.figures and "another device" in found.plot.note
    assert source.command("incident", "list").text == f"ssh op@line-3 'edgekit incident list --state {state}'"
    (folder / "ssh").write_text("#!/bin/sh\necho 'ssh: no route to host' >&2\nexit 255\n")
    lost = Reader().read(Wanted(source), now)
    assert "no route to host" in lost.trouble and "ssh op@line-3" in lost.hint


def test_what_stays_is_not_read_again_and_a_change_is_seen(
    hour_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, now = hour_copy, time.time()
    reads: list[int] = []
    true = incident_reader.read_one
    monkeypatch.setattr(
        incident_reader, "read_one", lambda source, number: reads.append(number) or true(source, number)
    )
    reader, wanted = Reader(), Wanted(here(state), 1)
    first = reader.read(wanted, now)
    assert reader.read(wanted, now + 1) is first and reads == [1]
    Incidents(state).acknowledge(1, who="anna", why="on it")
    after = reader.read(wanted, now + 2)
    assert after.shown is not None and after.shown.incident.state == "ACKNOWLEDGED"
    assert after.shown.timeline[-1].why == "on it"
    (state / "incidents.sqlite").write_bytes(b"no database at all")
    lost = reader.read(wanted, now + 3)
    assert (
        lost.trouble and lost.hint and lost.shown == after.shown
    )  # what was known stays, and is said to be old


@pytest.mark.parametrize(
    "value", [1e300, float("inf"), float("nan"), pytest.param(10**400, id="huge"), True, "x"]
)
def test_figures_and_limits_that_are_none_are_left_out(hour: BadHour, value: Any) -> None:
    state, now, _, _ = hour
    shown = read_one(here(state), number_of(state, "latency"))
    rule = {**shown.rule, "above": value, "for_s": value, "window_s": value}
    odd = replace(shown, rule=rule, evidence={"during": {"requests": value, "errors": 2}})
    assert evidence.rule_words(odd) == "Time to first token (p95)"
    assert evidence.figures(odd, "").figures == ("Errors: 2 (before: not known)",)
    plot = evidence.plot(odd, state, now)
    assert plot.line is None and plot.xs and min(plot.xs) > now - 86_400


def test_a_measurement_that_is_none_is_no_point_and_a_heartbeat_that_is_none_is_told(
    hour: BadHour, hour_copy: Path
) -> None:
    _, now, _, _ = hour
    shown = read_one(here(hour_copy), number_of(hour_copy, "temperature"))
    whole = evidence.plot(shown, hour_copy, now)
    store = Store(hour_copy / "telemetry.sqlite", every_s=3600)
    store.sample(Machine(now - 300, 300.0, float("inf"), 0.0, 0.5), shown.incident.release)
    store.close()
    with sqlite3.connect(store.path) as db:
        db.execute("update alive set time = 9e999")
    db.close()
    plot = evidence.plot(shown, hour_copy, now)
    assert len(plot.xs) == len(whole.xs) - 1 and max(plot.ys) < 100
    assert "was never heard from" in evidence.unheard(hour_copy, now)  # a time far ahead tells nothing
    (hour_copy / "telemetry.sqlite").write_bytes(b"no database" * 500)
    for side in hour_copy.glob("telemetry.sqlite-*"):
        side.unlink()
    assert "Unknown whether" in evidence.unheard(hour_copy, now) and "cannot be read" in evidence.unheard(
        hour_copy, now
    )


# Going back


def listed(*places: str) -> Outcome:
    names = [
        {"name": f"{place[:1]}" * 12, "place": place, "model": "m", "target": "t", "size_mib": 1.0}
        for place in places
    ]
    return Outcome(Command(("releases", "list")), 0, names)


def test_the_way_back_is_from_the_trial_to_the_current_one_else_to_the_previous() -> None:
    local = here(Path("/state"))
    found = plan(listed("current", "previous", "bad"), local)
    assert (found.leaving.name, found.back_to.name, found.typed) == ("c" * 12, "p" * 12, "p" * 12)
    trial = plan(listed("pending", "current", "previous"), local)
    assert trial.leaving.place == "pending" and trial.back_to.name == "c" * 12
    assert plan(listed("current", "good", "bad"), local).back_to.name == "g" * 12  # the one between was lost
    assert plan(listed("pending", "previous"), local).back_to.name == "p" * 12
    with pytest.raises(ConfigError, match="No earlier release than cccccccccccc is kept"):
        plan(listed("current", "bad"), local)
    away = Device("line-3", host="line-3")
    assert plan(listed("current", "previous"), away).typed == "line-3"
    with pytest.raises(ConfigError, match="No release is in use"):
        plan(listed("new"), local)
    endless = [{"name": "x", "place": "current", "size_mib": float("inf")}]
    for document in (None, {"a": 1}, [3], [{"place": "current"}], endless):
        with pytest.raises(CorruptError):
            plan(Outcome(Command(("x",)), 0, document), local)
    with pytest.raises(EdgekitError, match="damaged"):
        plan(Outcome(Command(("x",)), 5, None, "state.json is damaged."), local)


def test_the_command_names_the_release_that_it_leaves_and_who_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEKIT_WHO", "anna")
    source = Device("line-3", host="line-3")
    found = plan(listed("pending", "current"), source)
    assert rollback(source, found.leaving, "it's slow").arguments == (
        "releases", "rollback", "--release", "p" * 12, "--why", "it's slow", "--who", "anna",
    )  # fmt: skip
