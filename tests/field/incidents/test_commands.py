"""`edgekit incident` and `edgekit monitor` as a person types them, on a state folder with a real store."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.field.incidents.watcher import Watched, Watcher
from edgekit.field.status import read_status
from edgekit.field.telemetry.drift import DriftAlarm
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import Store
from edgekit.targets.rules import Rule


def device(state: Path, age_s: float = 0.0) -> None:
    """A device on which release aaa fails half of its requests and bbb does well; last heard of `age_s` ago."""
    now = time.time() - age_s
    store = Store(state / "telemetry.sqlite", every_s=3600)
    for release, failing, at in (("bbb", 0, now - 130), ("aaa", 20, now)):
        for number in range(40):
            finish = "error" if number < failing else "stop"
            store.add(
                Observation(at, release, "gguf", "chat", 20, 8, 0.0, 0.2, 0.4, confidence=0.9, finish=finish)
            )
        store.sample(Machine(at, 321.0, 61.0, 0.0, 0.5), release)
    store.alarm(
        DriftAlarm(now, "confidence", "psi", 0.4, 0.2, now - 60, "The confidence of answers fell."), "aaa"
    )
    store.heartbeat(now)
    store.flush()
    rules = [
        Rule(kind="errors", above=0.05, for_s=0.0, severity="critical"),
        Rule(kind="drift", above=0, for_s=0.0),
    ]
    Watcher(state, rules, Watched(store, lambda: "aaa")).tick(now)
    store.close()


def test_monitor_shows_the_worst_first_and_says_why(tmp_path: Path, shell) -> None:
    device(tmp_path)
    done = shell("monitor", "--once", "--json", "--state", tmp_path)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    first, second = shown["releases"]
    assert shown["state"] == "CRITICAL" and shown["window_s"] == 300
    assert (first["release"], first["requests"], first["errors"], first["in_use"]) == ("aaa", 40, 20, True)
    assert (first["rss_mib"], first["temperature_c"], round(first["confidence"], 3)) == (321.0, 61.0, 0.9)
    assert first["alarms"][0]["words"] == "The confidence of answers fell."
    assert "50.0% of the requests fail" in first["incidents"][0]["what"]
    assert "releases rollback" in first["incidents"][0]["next_steps"][0]["command"]
    assert (second["release"], second["state"], second["in_use"]) == ("bbb", "OK", False)
    plain = shell("monitor", "--once", "--state", tmp_path, "--window", "1h")
    assert plain.returncode == 0, plain.stderr
    assert "▲ CRITICAL aaa in use" in " ".join(plain.stdout.split()) and "\x1b" not in plain.stdout
    assert "50.0% of the requests fail" in " ".join(plain.stdout.split())


def test_a_device_that_is_not_heard_of_is_lost_with_its_last_numbers(tmp_path: Path, shell) -> None:
    device(tmp_path, age_s=7200.0)
    shown = json.loads(shell("monitor", "--once", "--json", "--watch", "--state", tmp_path).stdout)
    assert shown["state"] == "LOST" and shown["releases"][0]["requests"] == 40
    kinds = {incident["kind"] for row in shown["releases"] for incident in row["incidents"]}
    assert kinds == {"errors", "drift", "heartbeat"}
    plain = shell("monitor", "--once", "--state", tmp_path)
    assert "? LOST" in " ".join(plain.stdout.split()) and "last heartbeat 2 h 00 min ago" in plain.stdout


def test_an_operator_takes_an_incident_from_open_to_closed(tmp_path: Path, shell) -> None:
    device(tmp_path)
    listed = json.loads(shell("incident", "list", "--json", "--state", tmp_path).stdout)["incidents"]
    number = next(incident["id"] for incident in listed if incident["kind"] == "errors")
    shown = shell("incident", "show", number, "--state", tmp_path).stdout
    assert f"INCIDENT {number}  Failing requests  OPEN, critical" in shown
    assert f"edgekit releases rollback --state {tmp_path}" in shown and "Evidence" in shown
    done = shell("incident", "ack", number, "--why", "looking", "--who", "anna", "--state", tmp_path)
    assert done.stdout == f"Incident {number} is ACKNOWLEDGED, critical.\n"
    done = shell(
        "incident", "silence", number, "--for", "2h", "--why", "known", "--state", tmp_path, "--json"
    )
    assert json.loads(done.stdout)["incident"]["silenced_until"] > time.time() + 7000
    done = shell("incident", "close", number, "--why", "mended", "--state", tmp_path)
    assert done.stdout == f"Incident {number} is RESOLVED, critical.\n"
    told = json.loads(shell("incident", "show", number, "--json", "--state", tmp_path).stdout)
    assert [step["what"] for step in told["timeline"]] == ["opened", "acknowledged", "silenced", "closed"]
    assert told["timeline"][1]["who"] == "anna" and told["evidence"]["during"]["errors"] == 20
    log = tmp_path / "audit.jsonl"
    assert json.loads(shell("incident", "audit", "--json", "--state", tmp_path).stdout)["whole"]
    log.write_text(log.read_text().replace("looking", "sleeping"))
    assert shell("incident", "audit", "--state", tmp_path).returncode == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["incident", "ack", "7", "--why", "x"], "There is no incident 7"),
        (["incident", "silence", "7", "--why", "x", "--for", "soon"], "not a duration"),
        (["incident", "close", "7"], "--why"),
    ],
)
def test_what_is_typed_wrong_is_told(tmp_path: Path, shell, arguments: list[str], words: str) -> None:
    done = shell(*arguments, "--state", tmp_path)
    assert done.returncode == 2 and words in done.stderr


def test_a_device_where_nothing_happened_is_left_as_it_is(tmp_path: Path, shell) -> None:
    for verb in (("monitor", "--once"), ("incident", "list")):  # a misspelled folder is not a quiet device
        typed = shell(*verb, "--state", tmp_path / "state")
        assert typed.returncode == 2 and "There is no state folder" in typed.stderr
    assert "There is no telemetry yet" in shell("monitor", "--once", cwd=tmp_path).stdout
    assert shell("incident", "list", cwd=tmp_path).stdout == "There are no open incidents.\n"
    assert not list(tmp_path.iterdir())


def test_a_damaged_store_is_no_device_that_is_well(shell: Any, tmp_path: Path) -> None:
    (tmp_path / "telemetry.sqlite").write_bytes(b"no database" * 500)
    done = shell("monitor", "--once", "--json", "--state", tmp_path)
    assert done.returncode == 5 and "cannot be read" in json.loads(done.stdout)["message"]


def test_a_store_with_a_hole_is_no_device_that_is_well(shell: Any, tmp_path: Path) -> None:
    device(tmp_path)
    path, now = tmp_path / "telemetry.sqlite", time.time()
    store = Store(path, every_s=3600)
    for minute in range(10, 110):  # so that the newest minute is on another page than the damaged one
        store.add(Observation(now - 60 * minute, "old", "gguf", "chat", 20, 8, 0.0, 0.2, 0.4))
    store.close()
    query = "SELECT pageno FROM dbstat WHERE name = 'minutes' AND pagetype = 'leaf' ORDER BY path LIMIT 1 OFFSET 3"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute(query).fetchone()
    whole = bytearray(path.read_bytes())
    whole[4096 * (page - 1) : 4096 * page] = b"\xa5" * 4096
    path.write_bytes(whole)
    done = shell("monitor", "--once", "--json", "--window", "6h", "--state", tmp_path)
    assert done.returncode == 5 and "telemetry.sqlite cannot be read" in json.loads(done.stdout)["message"]


def test_what_is_in_use_and_was_never_heard_of_is_not_fine(shell: Any, tmp_path: Path) -> None:
    device(tmp_path)
    with sqlite3.connect(tmp_path / "telemetry.sqlite") as connection:
        connection.execute("DELETE FROM alive")
    (tmp_path / "incidents.sqlite").unlink()
    shown = json.loads(shell("monitor", "--once", "--json", "--state", tmp_path).stdout)
    assert shown["state"] == "LOST" and shown["releases"][0]["last_seen"] is None
    plain = shell("monitor", "--once", "--state", tmp_path).stdout
    assert "? aaa: no heartbeat yet: no server has run there" in plain


@pytest.mark.parametrize("other", [["--device", "x=ssh:host"], ["--fleet", "fleet.toml"], ["--demo"]])
@pytest.mark.parametrize("watch", [["--watch"], ["--webhook", "http://127.0.0.1:9/"]])
def test_a_watchdog_is_for_this_device_alone(
    shell: Any, tmp_path: Path, other: list[str], watch: list[str]
) -> None:
    done = shell("monitor", "--once", "--state", tmp_path, *watch, *other)
    assert done.returncode == 2 and "for this device alone" in done.stderr
    assert "edgekit monitor --watch" in done.stderr


def test_a_webhook_of_the_environment_hinders_no_look_at_others(shell: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "EDGEKIT_WEBHOOK": "http://127.0.0.1:9/"}
    where = "x=http://127.0.0.1:9/metrics"
    done = shell("monitor", "--once", "--json", "--state", tmp_path, "--device", where, env=environment)
    assert done.returncode == 0 and "x" in {one["device"] for one in json.loads(done.stdout)["devices"]}


def test_several_devices_are_one_document_and_one_table(shell: Any, tmp_path: Path) -> None:
    device(tmp_path)
    other = ["--device", "pi=http://127.0.0.1:9/metrics", "--state", tmp_path]
    document = json.loads(
        shell("monitor", "--json", *other).stdout
    )  # one document, though --once is left out
    assert document["schema"] == "edgekit.monitor/1" and len(document["devices"]) == 2
    read = [read_status(one) for one in document["devices"]]  # each is a document of the same schema
    assert {row.release for one in read for row in one.releases} >= {"aaa", "bbb"}
    plain = shell("monitor", "--once", *other).stdout
    table, alone = plain.splitlines(), shell("monitor", "--once", "--state", tmp_path).stdout.splitlines()
    assert table[0].startswith("2 devices") and "device" in table[1].split()
    assert [word for word in table[1].split() if word != "device"] == alone[1].split()
    assert "? pi The device: never heard" in plain


def test_the_demo_without_a_terminal_is_the_recorded_one(shell: Any, tmp_path: Path) -> None:
    done = shell("monitor", "--demo", "--json", "--state", tmp_path, timeout=120)
    shown = json.loads(done.stdout)
    assert done.returncode == 0 and shown["schema"] == "edgekit.monitor/1"
    assert any(row["requests"] for row in shown["releases"]) and not list(tmp_path.iterdir())


def test_control_characters_of_foreign_text_do_not_reach_the_terminal(tmp_path: Path, shell) -> None:
    device(tmp_path)
    with sqlite3.connect(tmp_path / "incidents.sqlite") as db:
        db.execute("update incidents set what = 'bad\x1b[2J [bold]name[/bold]'")
    for arguments in (["incident", "show", 1], ["incident", "list"], ["monitor", "--once"]):
        done = shell(*arguments, "--state", tmp_path)
        assert done.returncode == 0 and "\x1b" not in done.stdout and "[bold]name[/bold]" in done.stdout
