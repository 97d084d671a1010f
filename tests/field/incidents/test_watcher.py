"""The watcher on a real telemetry store: it opens and ends incidents, acts once, and goes on after a restart."""

from __future__ import annotations

import json
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import StageError
from edgekit.device.manifest import SCHEMA
from edgekit.field.incidents import evidence
from edgekit.field.incidents import watcher as watching
from edgekit.field.incidents.defaults import default_rules
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.incidents.watcher import Reactions, Watched, Watcher
from edgekit.field.telemetry.drift import DriftAlarm
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import Store
from edgekit.targets.rules import Rule

T = 1_800_000_000.0
ERRORS = Rule(
    kind="errors", above=0.05, clear=0.01, for_s=10.0, window_s=60.0, action="auto", severity="critical"
)
SECRET_WORDS = ("customer Meier", "her password is swordfish")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "telemetry.sqlite", every_s=3600)
    yield store
    store.close()


def fill(store: Store, at: float, good: int = 0, bad: int = 0, release: str = "aaa") -> None:
    for number in range(good + bad):
        finish = "stop" if number < good else "error"
        store.add(
            Observation(
                at, release, "gguf", "chat", prompt_tokens=20, answer_tokens=8, queue_s=0.0, ttft_s=0.2, duration_s=0.4,
                confidence=0.9, label="open_job", finish=finish, error=None if finish == "stop" else "StageError",
            )
        )  # fmt: skip
    store.heartbeat(at)
    store.flush()


class Told:
    """In the place of a webhook: keeps what it is sent."""

    def __init__(self) -> None:
        self.documents: list[Mapping[str, Any]] = []

    def send(self, document: Mapping[str, Any]) -> None:
        self.documents.append(document)

    def close(self) -> None:
        pass

    @property
    def changes(self) -> list[str]:
        return [document["change"]["what"] for document in self.documents]


def make(state: Path, store: Store, rules: list[Rule], **options: Any) -> Watcher:
    watched: dict[str, Any] = {"windows": store, "release": lambda: "aaa"}
    watched |= {name: value for name, value in options.items() if name in Watched.__dataclass_fields__}
    reactions = {name: value for name, value in options.items() if name in Reactions.__dataclass_fields__}
    rest = {name: value for name, value in options.items() if name not in {**watched, **reactions}}
    return Watcher(state, rules, Watched(**watched), Reactions(**reactions), **rest)


def look(watcher: Watcher, begin: float, end: float) -> list[str]:
    found = []
    for step in range(int((end - begin) // 5) + 1):
        found += [change.kind for change in watcher.tick(begin + 5 * step)]
    return found


def test_an_incident_from_beginning_to_end(tmp_path: Path, store: Store) -> None:
    told, done = Told(), []

    def act(incident: Any) -> str:
        done.append(incident.id)
        return "went back to bbb"

    watcher = make(tmp_path, store, [ERRORS], webhook=told, act=act)
    fill(store, T, good=100)
    assert look(watcher, T, T + 10) == []
    fill(store, T + 12, good=50, bad=50)
    assert look(watcher, T + 15, T + 30) == ["opened"]
    (incident,) = watcher.incidents.find()
    assert (
        incident.what.startswith("33.3% of the requests failed, limit 5.0%, since ")
        or "25.0%" in incident.what
    )
    assert done == [1] and watcher.incidents.get(1).acted
    fill(store, T + 150, good=100)
    assert look(watcher, T + 185, T + 220) == ["resolved"]
    assert watcher.incidents.get(1).state == "RESOLVED"
    assert told.changes == ["opened", "acted", "resolved"]
    assert [step["why"] for step in watcher.incidents.timeline(1)][1] == "went back to bbb"
    kept = evidence.read(evidence.path_of(tmp_path, 1))
    assert kept is not None and kept["left_out"] == {}
    assert kept["during"]["errors"] == 50 and kept["before"]["requests"] == 0 and kept["after"]["errors"] == 0
    assert kept["rule"]["above"] == 0.05 and kept["machine"]["cores"] and kept["versions"]["running"]


@pytest.mark.parametrize("cut", range(0, 30, 5))
def test_a_restart_in_the_middle_changes_nothing(tmp_path: Path, store: Store, cut: int) -> None:
    """Ended at any look while an alert is pending or open, the next watcher tells neither twice nor never."""
    fill(store, T, good=10, bad=90)
    first = make(tmp_path, store, [ERRORS])
    look(first, T, T + cut)
    second = make(tmp_path, store, [ERRORS])
    look(second, T + cut + 5, T + 40)
    assert [incident.since for incident in second.incidents.find(everything=True)] == [T]
    assert [step["what"] for step in second.incidents.timeline(1)] == ["opened"]
    fill(store, T + 150, good=100)
    third = make(tmp_path, store, [ERRORS])
    assert look(third, T + 185, T + 215) == ["resolved"]


def test_a_restart_that_lost_the_state_of_the_rules_still_ends_the_incident(
    tmp_path: Path, store: Store
) -> None:
    fill(store, T, good=10, bad=90)
    look(make(tmp_path, store, [ERRORS]), T, T + 20)
    with sqlite3.connect(tmp_path / "incidents.sqlite") as db:
        db.execute("delete from alerts")
    fill(store, T + 150, good=100)
    assert look(make(tmp_path, store, [ERRORS]), T + 185, T + 215) == ["resolved"]


def test_closed_by_hand_it_comes_again_while_its_rule_holds(tmp_path: Path, store: Store) -> None:
    fill(store, T, good=10, bad=90)
    watcher = make(tmp_path, store, [ERRORS])
    look(watcher, T, T + 20)
    watcher.incidents.close(1, who="anna", why="enough", now=T + 20)
    assert look(watcher, T + 25, T + 40) == ["opened"]
    assert [incident.id for incident in watcher.incidents.find()] == [2]


def test_silence_stops_telling_and_acting_until_it_ends(tmp_path: Path, store: Store) -> None:
    fill(store, T, good=10, bad=90)
    told, done = Told(), []
    rule = ERRORS.model_copy(update={"window_s": 600.0})

    def act(incident: Any) -> str:
        done.append(incident.id)
        return "done"

    watcher = make(tmp_path, store, [rule])
    look(watcher, T, T + 20)
    watcher.incidents.silence(1, until=T + 100, who="anna", why="known", now=T + 20)
    watcher.incidents.close(1, who="anna", why="known", now=T + 21)
    watcher = make(tmp_path, store, [rule], webhook=told, act=act)
    look(watcher, T + 25, T + 95)
    assert [incident.id for incident in watcher.incidents.find()] == [2]
    assert told.changes == [] and done == []
    look(watcher, T + 100, T + 105)
    assert told.changes == ["silence ended", "acted"] and done == [2]


def test_an_action_that_fails_is_told_and_harms_nothing(tmp_path: Path, store: Store) -> None:
    def act(incident: Any) -> str:
        raise StageError("There is no release to go back to.")

    fill(store, T, good=10, bad=90)
    watcher = make(tmp_path, store, [ERRORS], act=act)
    look(watcher, T, T + 40)
    steps = [(step["what"], step["why"]) for step in watcher.incidents.timeline(1)]
    assert steps[1:] == [("could not act", "There is no release to go back to.")]


def test_after_a_switch_the_old_release_is_left_alone(tmp_path: Path, store: Store) -> None:
    """The action went back to another release: the incident is over, and nothing is done a second time."""
    current, done = ["aaa"], []

    def act(incident: Any) -> str:
        done.append(incident.release)
        current[0] = "bbb"
        return "went back to bbb"

    fill(store, T, good=10, bad=90)
    watcher = make(tmp_path, store, [ERRORS], release=lambda: current[0], act=act)
    look(watcher, T, T + 10)
    assert done == ["aaa"]
    fill(store, T + 15, good=100, release="bbb")
    assert look(watcher, T + 15, T + 60) == ["resolved"]
    assert done == ["aaa"] and watcher.incidents.timeline(1)[-1]["why"] == "it is no longer in use"


def test_drift_is_told_in_words_and_stays_until_somebody_closes_it(tmp_path: Path, store: Store) -> None:
    fill(store, T, good=100)
    store.alarm(
        DriftAlarm(T, "confidence", "psi", 0.4, 0.2, T - 60, "The confidence of answers fell."), "aaa"
    )
    store.flush()
    watcher = make(tmp_path, store, default_rules())
    assert look(watcher, T + 1, T + 1) == ["opened"]
    (incident,) = watcher.incidents.find()
    assert incident.since == T - 60  # when it began, not when it could be told
    assert incident.kind == "drift" and incident.what.startswith("The confidence of answers fell, since ")
    watcher.incidents.close(incident.id, who="anna", why="expected", now=T + 10)
    fill(store, T + 12, good=10)
    assert look(watcher, T + 15, T + 30) == []  # the same alarm is not told again
    store.alarm(DriftAlarm(T + 31, "entropy", "psi", 0.4, 0.2, T, "The entropy of answers rose."), "aaa")
    assert look(watcher, T + 35, T + 35) == ["opened"]


def write_bundle(folder: Path) -> Path:
    """A bundle of one file, as far as its watcher reads it."""
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"weights")
    files = [{"path": "model.gguf", "bytes": 7, "sha256": sha256_file(folder / "model.gguf")}]
    formats = {"gguf": {"path": "model.gguf", "runtime": "llama.cpp"}}
    manifest = {"schema": SCHEMA, "files": files, "formats": formats, "name": "tiny"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_changed_file_and_a_lost_device_are_found(tmp_path: Path, store: Store) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    fill(store, T, good=20)
    watcher = make(tmp_path, store, default_rules(), bundle=lambda: bundle)
    assert look(watcher, T, T + 10) == []
    (bundle / "model.gguf").write_bytes(b"weighty")
    store.heartbeat(T + 601)
    watcher.tick(T + 601)
    store.heartbeat(T + 602)
    assert look(watcher, T + 606, T + 650) == ["opened"]  # the heartbeat
    assert {incident.kind for incident in watcher.incidents.find()} == {"integrity", "heartbeat"}
    kept = evidence.read(evidence.path_of(tmp_path, 1))
    assert kept is not None and kept["versions"]["bundle"]["name"] == "tiny"


def test_files_are_read_when_they_look_changed_and_once_a_day(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    reads: list[Path] = []
    check = watching.check_files

    def counted(folder: Path, *arguments: Any) -> None:
        reads.append(folder)
        check(folder, *arguments)

    monkeypatch.setattr(watching, "check_files", counted)
    watcher = make(tmp_path, store, default_rules(), bundle=lambda: bundle)
    for minutes in range(0, 60, 10):
        watcher.tick(T + 60 * minutes)
    assert len(reads) == 1
    os.utime(bundle / "model.gguf")
    watcher.tick(T + 3600)
    assert len(reads) == 2
    watcher.tick(T + 3600 + 86_400)
    assert len(reads) == 3
    (bundle / "model.gguf").unlink()
    watcher.tick(T + 3600 + 2 * 86_400)
    assert "integrity" in {incident.kind for incident in watcher.incidents.find()}


def test_evidence_has_no_texts(tmp_path: Path, store: Store) -> None:
    """Whatever telemetry comes to hold, only the numbers that evidence names get into it."""

    class Talkative:
        def window(self, since: float, until: float, release: str | None = None) -> Any:
            window = store.window(since, until, release)
            object.__setattr__(window, "reservoir", SECRET_WORDS)
            window.alarms.append(
                {"signal": "confidence", "words": "It fell.", "prompt": SECRET_WORDS[1], "time": until}
            )
            return window

        trouble = ""

    fill(store, T, good=10, bad=90)
    watcher = make(tmp_path, store, [ERRORS], windows=Talkative())
    look(watcher, T, T + 20)
    text = evidence.path_of(tmp_path, 1).read_text()
    assert "open_job" in text and "It fell." in text
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not any(words.encode() in everything for words in SECRET_WORDS)


def test_evidence_that_cannot_be_read_is_named_and_the_rest_is_there(tmp_path: Path, store: Store) -> None:
    fill(store, T, good=10, bad=90)
    watcher = make(tmp_path, store, [ERRORS], bundle=lambda: tmp_path / "no-bundle")
    look(watcher, T, T + 20)
    kept = evidence.read(evidence.path_of(tmp_path, 1))
    assert kept is not None and list(kept["left_out"]) == ["versions"] and kept["during"]["errors"] == 90


def test_it_goes_on_after_trouble(tmp_path: Path, store: Store) -> None:
    """In a thread, with a store that fails and a database that is damaged meanwhile."""

    class Failing:
        fails = True
        trouble = ""

        def window(self, *arguments: Any) -> Any:
            if self.fails:
                raise RuntimeError("the store is gone")
            return store.window(*arguments)

    def until(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, watcher.trouble
            time.sleep(0.01)

    windows = Failing()
    (tmp_path / "incidents.sqlite").write_bytes(b"not a database" * 500)
    watcher = make(tmp_path, store, [ERRORS.model_copy(update={"for_s": 0.0})], windows=windows, every_s=0.01)
    watcher.start()
    until(lambda: "the store is gone" in watcher.trouble)
    fill(store, time.time(), good=10, bad=90)
    windows.fails = False
    until(lambda: bool(Incidents(tmp_path).find()))
    watcher.close()
    assert list(tmp_path.glob("incidents.sqlite.damaged-*")) and "watcher" not in str(threading.enumerate())


def _hold(state: Path, began: Any) -> None:
    import contextlib

    from edgekit.field.incidents.watcher import _locked

    with contextlib.ExitStack() as stack:
        assert _locked(state, stack) is not None
        began.set()
        time.sleep(60)


def test_one_watcher_at_a_time_and_the_next_takes_over(tmp_path: Path, store: Store) -> None:
    fill(store, T, good=10, bad=90)
    rule = ERRORS.model_copy(update={"for_s": 0.0})
    context = multiprocessing.get_context("fork")
    began = context.Event()
    other = context.Process(target=_hold, args=(tmp_path, began), daemon=True)
    other.start()
    assert began.wait(30)
    watcher = make(tmp_path, store, [rule])
    assert watcher.once(T) == []
    other.kill()
    other.join()
    assert [change.kind for change in watcher.once(T)] == ["opened"]


def test_another_release_brings_its_own_rules(tmp_path: Path, store: Store) -> None:
    fill(store, T, good=10, bad=90)
    watcher = make(tmp_path, store, [ERRORS])
    look(watcher, T, T + 20)
    watcher.use([ERRORS.model_copy(update={"above": 0.5})])
    assert look(watcher, T + 25, T + 40) == ["opened"]
    old, new = (watcher.incidents.get(number) for number in (1, 2))
    assert (old.state, watcher.incidents.timeline(1)[-1]["why"]) == (
        "RESOLVED",
        "its rule is no longer in use",
    )
    assert (new.state, new.rule) == ("OPEN", "error_rate > 0.5")
