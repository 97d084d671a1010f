"""Incidents as they are read from a device: what came before, and stores and documents that are damaged or foreign."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from field_state import BadHour

from edgekit.base.errors import ConfigError, CorruptError, EdgekitError
from edgekit.field.fleet.device import Device
from edgekit.field.fleet.incidents import read_document, read_list, read_one
from edgekit.field.incidents.incidents import Incidents


def here(state: Path) -> Device:
    return Device("here", state=state)


def number_of(state: Path, kind: str) -> int:
    return next(one.id for one in Incidents(state).find() if one.kind == kind)


def test_a_missing_folder_and_a_missing_number_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no state folder") as told:
        read_list(here(tmp_path / "gone"))
    assert "edgekit serve" in told.value.hint and read_list(here(tmp_path)) == ()
    with pytest.raises(ConfigError, match="There is no incident 7"):
        read_one(here(tmp_path), 7)


def test_the_switch_before_it_is_the_likely_cause_unless_going_back_would_not_help(
    hour: BadHour,
) -> None:
    state, _, old, new = hour
    shown = read_one(here(state), number_of(state, "errors"))
    assert [(change.release, change.what, change.who) for change in shown.changes] == [
        (old, "promoted", "anna"), (new, "promoted", "anna"),
    ]  # fmt: skip
    assert shown.changes[0].mark == "" and "likely cause" in shown.changes[1].mark
    assert "releases rollback" in shown.steps[0].command and shown.meaning
    assert (
        shown.timeline[0].what == "opened" and shown.timeline[0].why == ""
    )  # the sentence stands above already
    hot = read_one(here(state), number_of(state, "temperature"))
    assert hot.incident.action == "never" and not any(change.mark for change in hot.changes)


def test_a_switch_long_before_is_a_possible_cause_and_one_after_is_none(
    hour: BadHour,
) -> None:
    state = hour.state
    document = dict(read_one(here(state), number_of(state, "errors")).document)
    since = document["incident"]["since"]

    def marks(*times: float) -> list[str]:
        line = {"who": "anna", "what": "promote", "why": ""}
        switches = [{**line, "time": since - at, "release": f"r{at:g}"} for at in times]
        return [c.mark for c in read_document({**document, "changed_before": switches}, here(state)).changes]

    assert marks(7200.0) == ["possible cause: 2 h 00 min before"]
    assert marks(7200.0, 30.0, -5.0) == ["", "likely cause: 30 s before", ""]
    assert marks() == []


def test_texts_of_a_store_can_do_nothing_to_a_terminal(hour: BadHour) -> None:
    state = hour.state
    document = dict(read_one(here(state), number_of(state, "errors")).document)
    evil = "\x1b[2J[red]gone[/]\n\u202eback"
    document["incident"] = {**document["incident"], "what": evil, "release": evil}
    document["timeline"] = [{"time": 1.0, "who": evil, "what": evil, "why": evil}]
    document["next_steps"] = [{"text": evil, "command": evil}]
    shown = read_document(document, here(state))
    texts = [
        shown.incident.what,
        shown.incident.release,
        shown.timeline[0].who,
        shown.steps[0].text,
        shown.steps[0].command,
    ]
    assert all("[red]gone" in text and "\x1b" not in text and "\u202e" not in text for text in texts)


@pytest.mark.parametrize("damage", ["text", "half", "rule", "empty"])
def test_a_damaged_store_is_a_sentence_with_what_to_do(hour_copy: Path, damage: str) -> None:
    state, path = hour_copy, hour_copy / "incidents.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("pragma journal_mode = delete")
    if damage == "text":
        path.write_bytes(b"this is no database" * 1000)
    elif damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "rule":
        with sqlite3.connect(path) as db:
            db.execute("update incidents set rule_json = '{', opened = 'noon'")
        db.close()
    else:
        path.write_bytes(b"")
    with pytest.raises(EdgekitError) as told:
        read_one(here(state), 1)
    assert told.value.message.endswith(".") and told.value.hint


def test_a_changed_audit_log_is_told_with_the_incident(hour_copy: Path) -> None:
    state = hour_copy
    assert read_one(here(state), 1).warning == ""
    log = state / "audit.jsonl"
    log.write_text(log.read_text().replace("watcher", "nobody", 1))
    assert "The audit log was changed: line" in read_one(here(state), 1).warning
    log.unlink()
    assert "missing" in read_one(here(state), 1).warning


DOCUMENTS = [None, [], {}, {"incident": None}, {"incident": {"id": "x"}}, "text", 7]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_that_is_none_of_ours_is_said_so(document: Any) -> None:
    with pytest.raises(CorruptError, match="cannot be read"):
        read_document(document, Device("line-3", host="line-3"))


@pytest.mark.parametrize(
    "value", [1e300, float("inf"), float("nan"), 1e11, pytest.param(10**400, id="huge"), True, "noon", [1]]
)
@pytest.mark.parametrize("name", ["since", "opened", "resolved", "silenced_until", "switch", "event"])
def test_a_time_that_is_none_is_said_so_and_goes_no_further(hour: BadHour, name: str, value: Any) -> None:
    state = hour.state
    document = dict(read_one(here(state), number_of(state, "errors")).document)
    line = {"time": value, "who": "anna", "what": "promote", "release": "r", "why": ""}
    if name == "switch":
        document["changed_before"] = [line]
    elif name == "event":
        document["timeline"] = [line]
    else:
        document["incident"] = {**document["incident"], name: value}
    with pytest.raises(CorruptError, match="cannot be read"):
        read_document(document, here(state))


def test_what_is_exported_is_json_whatever_was_told(hour: BadHour) -> None:
    state = hour.state
    document = dict(read_one(here(state), number_of(state, "errors")).document)
    document["evidence"] = {
        "during": {"ttft_p95_s": float("nan"), "all": [float("inf"), 1.5, "NaN"]},
        "raw": b"x",
    }
    exported = read_document(document, here(state)).document
    assert json.loads(json.dumps(exported, allow_nan=False)) == exported
    assert exported["evidence"]["during"] == {"ttft_p95_s": None, "all": [None, 1.5, "NaN"]}
