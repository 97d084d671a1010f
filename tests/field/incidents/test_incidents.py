"""Incidents and their audit log: states, silence, who and why, and a log that shows when it was changed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.errors import ConfigError, CorruptError, StageError
from edgekit.field.incidents import audit as audit_log
from edgekit.field.incidents.audit import HEAD, Audit
from edgekit.field.incidents.history import switches
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.incidents.readings import Reading
from edgekit.field.incidents.rules import Change
from edgekit.field.incidents.runbook import runbook
from edgekit.targets.rules import Rule

RULE = Rule(kind="errors", above=0.05, severity="critical")
T = 1_800_000_000.0


def change(kind: str = "opened", time: float = T, release: str = "aaa", rule: Rule = RULE) -> Change:
    reading = Reading(release=release, requests=100, errors=20)
    return Change(kind, rule, release, release, time, time - 60, 0.2, reading)  # type: ignore[arg-type]


def test_an_incident_goes_its_way_and_every_step_is_kept(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path)
    opened = incidents.open(change(), who="watcher")
    assert opened is not None and opened.state == "OPEN"
    assert opened.what.startswith("20.0% of the requests failed, limit 5.0%, since ")
    assert incidents.open(change(time=T + 1), who="watcher") is None  # one is under way
    assert incidents.acknowledge(1, who="anna", why="looking").state == "ACKNOWLEDGED"
    over = incidents.resolve(change("resolved", T + 100), who="watcher")
    assert over is not None and over.state == "RESOLVED" and over.resolved == T + 100
    told = [(step["who"], step["what"], step["why"]) for step in incidents.timeline(1)]
    assert told[1] == ("anna", "acknowledged", "looking")
    assert [step[1] for step in told] == [entry["what"] for entry in incidents.audit.entries()]
    assert incidents.audit.check() == []
    with pytest.raises(ConfigError, match="Incident 1 is already resolved"):
        incidents.close(1, who="anna", why="again")
    with pytest.raises(ConfigError, match="no incident 9"):
        incidents.acknowledge(9, who="anna", why="looking")
    assert len(incidents.audit.entries()) == 3  # what was refused is not told


def test_a_silence_ends_by_itself_and_holds_for_the_next_one(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path)
    incidents.open(change(), who="watcher")
    silenced = incidents.silence(1, until=T + 3600, who="anna", why="known", now=T)
    assert silenced.silenced(T + 3599) and not silenced.silenced(T + 3600) and silenced.state == "OPEN"
    incidents.resolve(change("resolved", T + 100), who="watcher")
    again = incidents.open(change(time=T + 200), who="watcher")
    assert again is not None and again.silenced_until == T + 3600
    assert incidents.end_silences(T + 3599, who="watcher") == []
    assert [incident.id for incident in incidents.end_silences(T + 3600, who="watcher")] == [2]
    assert incidents.end_silences(T + 3601, who="watcher") == []  # told once
    with pytest.raises(ConfigError, match="future"):
        incidents.silence(2, until=T - 1, who="anna", why="late", now=T)


def test_the_worst_come_first(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path)
    incidents.open(change(time=T + 5, rule=Rule(kind="empty", above=0.1)), who="watcher")
    incidents.open(change(), who="watcher")
    incidents.open(change(release="bbb", time=T + 1), who="watcher")
    assert [incident.severity for incident in incidents.find()] == ["critical", "critical", "warning"]
    incidents.close(2, who="anna", why="done")
    assert [incident.id for incident in incidents.find(everything=True)] == [3, 1, 2]


def test_a_damaged_database_is_told_and_set_aside(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path)
    incidents.open(change(), who="watcher")
    incidents.path.write_bytes(b"not a database at all" * 300)
    with pytest.raises(CorruptError, match="damaged"):
        incidents.find()
    assert incidents.set_aside().is_file()
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "7.json").write_text("{}")
    assert incidents.find() == []
    opened = incidents.open(change(), who="watcher")
    assert opened is not None and opened.id == 8  # its evidence may not replace an earlier one


def test_what_cannot_be_audited_does_not_happen(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path)
    incidents.open(change(), who="watcher")
    incidents.audit.path.unlink()
    incidents.audit.path.mkdir()  # nothing can be appended to a folder
    with pytest.raises(StageError, match="Nothing was changed"):
        incidents.acknowledge(1, who="anna", why="looking")
    assert incidents.get(1).state == "OPEN"


def filled(state: Path, lines: int = 5) -> Audit:
    audit = Audit(state)
    for number in range(lines):
        audit.append(who="anna", what=f"step {number}", why="because", incident=number)
    assert audit.check() == []
    return audit


@pytest.mark.parametrize("line", range(5))
def test_a_changed_line_is_found(tmp_path: Path, line: int) -> None:
    audit = filled(tmp_path)
    lines = audit.path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b"anna", b"otto")
    audit.path.write_bytes(b"".join(lines))
    (fault,) = audit.check()
    assert "changed" in fault.what and fault.line in (line + 1, line + 2)


@pytest.mark.parametrize("line", range(5))
def test_a_line_taken_out_is_found(tmp_path: Path, line: int) -> None:
    audit = filled(tmp_path)
    lines = audit.path.read_bytes().splitlines(keepends=True)
    audit.path.write_bytes(b"".join(lines[:line] + lines[line + 1 :]))
    assert any("missing" in fault.what for fault in audit.check())


def test_a_line_put_in_and_a_lost_head_are_found(tmp_path: Path) -> None:
    audit = filled(tmp_path)
    lines = audit.path.read_bytes().splitlines(keepends=True)
    audit.path.write_bytes(b"".join([*lines[:2], lines[1], *lines[2:]]))
    assert audit.check()
    audit.path.write_bytes(b"".join(lines))
    assert audit.check() == []
    (tmp_path / "audit.head").unlink()
    assert "audit.head is missing" in audit.check()[0].what


def test_a_line_whose_writer_was_killed_is_no_fault(tmp_path: Path) -> None:
    audit = filled(tmp_path)
    with audit.path.open("ab") as file:
        file.write(b'{"n": 6, "who": "an')
    assert audit.check() == []
    audit.append(who="anna", what="after", why="")
    assert audit.check() == [] and [entry["n"] for entry in audit.entries()] == [1, 2, 3, 4, 5, 6]


def _append(state: Path, who: str) -> None:
    for number in range(20):
        Audit(state).append(who=who, what=str(number))


def test_several_processes_keep_one_chain(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append, args=(tmp_path, who)) for who in ("anna", "otto", "emma")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert Audit(tmp_path).check() == [] and len(Audit(tmp_path).entries()) == 60


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from edgekit.field.incidents import audit
step, count = int(sys.argv[2]), 0
def cut(call):
    def wrapped(*args, **options):
        global count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **options)
    return wrapped
for name in ("write", "fsync", "replace"):
    setattr(audit.os, name, cut(getattr(os, name)))
audit.Audit(Path(sys.argv[1])).append(who="anna", what="cut", why="power")
"""


def test_a_cut_at_any_step_leaves_a_whole_log(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    for step in (1, 2, 3):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(step)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert Audit(tmp_path).check() == []
    Audit(tmp_path).append(who="anna", what="after")
    assert Audit(tmp_path).check() == []
    assert Audit(tmp_path).entries()[-1]["what"] == "after"


def test_every_kind_has_a_runbook_whose_commands_can_be_typed(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path)
    for rule in (
        Rule(kind=kind, above=1.0) for kind in ("latency", "memory", "temperature", "errors", "empty")
    ):
        incidents.open(change(rule=rule), who="watcher")
    for kind in ("drift", "calibration", "integrity", "heartbeat", "store"):
        incidents.open(change(rule=Rule(kind=kind, above=1.0)), who="watcher")  # type: ignore[arg-type]
    incidents.open(change(rule=Rule(kind="speed", below=1.0)), who="watcher")
    found = incidents.find()
    assert len(found) == 11
    for incident in found:
        book = runbook(incident, tmp_path)
        commands = [step.command for step in book.steps if step.command]
        assert book.meaning and len(commands) >= 3 and "{" not in book.text
        assert any(f"ack {incident.id} --state {tmp_path}" in c or "incident show" in c for c in commands)
    never = [runbook(i) for i in found if i.kind == "temperature"]
    assert never and not any("rollback" in step.command for step in never[0].steps)


def test_rollback_is_not_suggested_where_the_rule_says_never(tmp_path: Path) -> None:
    incidents = Incidents(tmp_path)
    for action in ("never", "suggest"):
        rule = Rule(kind="errors", above=0.05 if action == "never" else 0.06, action=action)  # type: ignore[arg-type]
        incident = incidents.open(change(rule=rule), who="watcher")
        assert incident is not None
        suggested = any("releases rollback" in step.command for step in runbook(incident).steps)
        assert suggested is (action == "suggest")


def test_what_changed_before_comes_from_the_log_of_releases(tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    entries = [
        {"time": T - 200, "who": "anna", "what": "import", "release": "bbb", "why": ""},
        {"time": T - 100, "who": "anna", "what": "promote", "release": "bbb", "why": "better"},
        {"time": T + 100, "who": "otto", "what": "rollback", "release": "aaa", "why": "worse"},
    ]
    text = "\n".join([*map(json.dumps, entries), "[1, 2]", '{"time": "x"}', '{"torn": '])
    (tmp_path / "releases" / "log.jsonl").write_text(text)
    (found,) = switches(tmp_path, T - 1000, T)
    assert (found.what, found.release, found.who) == ("promote", "bbb", "anna")
    assert switches(tmp_path / "none", 0, T) == []


def test_the_audit_log_is_its_users_alone(tmp_path: Path) -> None:
    assert os.stat(filled(tmp_path).path).st_mode & 0o077 == 0


def test_a_database_of_a_newer_edgekit_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "incidents.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("pragma user_version = 99")
    before = path.read_bytes()
    with pytest.raises(StageError, match="newer edgekit"):
        Incidents(tmp_path).find()
    assert path.read_bytes() == before


def test_a_log_that_grew_too_large_goes_on_in_another_file_with_the_same_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "LARGEST_BYTES", 1000)
    audit = Audit(tmp_path)
    for number in range(1, 31):
        audit.append(who="anna", what=f"step {number}")
        assert audit.check() == []
    kept = [entry["n"] for entry in audit.entries()]
    assert kept[0] > 1 and kept == list(range(kept[0], 31))
    older = tmp_path / "audit.1.jsonl"
    assert sum(path.stat().st_size for path in (audit.path, older)) < 3000
    lines = older.read_bytes().splitlines(keepends=True)
    for changed in (lines[1:], lines[:-1], [lines[0].replace(b"anna", b"otto"), *lines[1:]], []):
        older.write_bytes(b"".join(changed))
        assert audit.check(), f"{len(changed)} of {len(lines)} lines are there"
    older.write_bytes(b"".join(lines))
    assert audit.check() == []


def test_a_cut_between_the_two_steps_of_a_rotation_leaves_a_whole_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "LARGEST_BYTES", 1000)
    audit = Audit(tmp_path)
    replace, cuts = os.replace, 0

    def cut(source: Any, target: Any) -> None:
        nonlocal cuts
        if Path(target).name == "audit.1.jsonl" and cuts < 2:
            cuts += 1
            raise OSError("cut")
        replace(source, target)

    monkeypatch.setattr(os, "replace", cut)
    for number in range(30):
        with contextlib.suppress(OSError):
            audit.append(who="anna", what=f"step {number}")
        assert audit.check() == []
    assert cuts == 2 and (tmp_path / "audit.1.jsonl").exists()


def test_the_audit_says_of_an_empty_head_only_what_is_known_and_goes_on(tmp_path: Path) -> None:
    audit = Audit(tmp_path)
    for number in range(3):
        audit.append(who="ann", what=f"change {number}")
    (tmp_path / HEAD).write_text("")
    assert ["is empty" in fault.what for fault in audit.check()] == [True]
    audit.append(who="ann", what="one more")
    assert audit.check() == [] and [entry["n"] for entry in audit.entries()] == [1, 2, 3, 4]
