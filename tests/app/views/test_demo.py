"""The demo's recording passes the product's own readers, ends now, and plays."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.app.views import demo
from edgekit.app.views.demo import later, unpack
from edgekit.app.views.demo_replay import replay
from edgekit.app.views.settings import Settings
from edgekit.base.clock import clock
from edgekit.base.errors import MissingPartError
from edgekit.base.events import GateResult, Measured, Progress, StageFinished, StageStarted, from_json
from edgekit.build import runs
from edgekit.device.manifest import read_manifest
from edgekit.field.fleet.connection import connect
from edgekit.field.fleet.device import Device
from edgekit.field.incidents import evidence
from edgekit.field.incidents.audit import Audit
from edgekit.field.incidents.defaults import TTFT_P95_S
from edgekit.field.incidents.history import switches
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.releases import Releases
from edgekit.field.status import ReleaseStatus, current_release, overview
from edgekit.field.telemetry.store import FILE, Store

NOW = 1_800_000_012.0
DAY_S = 86_400.0


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return unpack(tmp_path_factory.mktemp("demo"), NOW)


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return found


def drift_of(state: Path) -> Any:
    (found,) = [one for one in Incidents(state).find() if one.kind == "drift"]
    return found


def times_in(value: Any) -> Iterator[float]:
    """Every number that can only be a time of our days."""
    if isinstance(value, dict):
        for part in value.values():
            yield from times_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from times_in(part)
    elif isinstance(value, int | float) and 1.5e9 < value < 3e9:
        yield value


def test_it_is_unpacked_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    unpack(tmp_path, NOW)
    assert time.perf_counter() - start < 2  # a second on a machine that does nothing else


def test_the_recording_is_small_and_names_no_machine() -> None:
    files = list(demo.RECORDING.iterdir())
    assert {file.name for file in files} == {"build.json.gz", "bundle.json.gz", "day.json.gz"}
    assert sum(file.stat().st_size for file in files) <= 80 * 1024
    for part in ("build", "bundle", "day"):
        text = json.dumps(demo.read(part))
        for word in ("/work/", "/root/", "/home/", "/tmp/", '"root"'):
            assert word not in text, (part, word)


def test_without_the_recording_it_says_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "RECORDING", tmp_path / "none")
    with pytest.raises(MissingPartError, match="not part of the installed package") as told:
        unpack(tmp_path / "demo", NOW)
    assert "clone" in told.value.hint and not (tmp_path / "demo").exists()


def test_the_monitor_shows_a_day_that_ends_now_and_drifts(day: Settings) -> None:
    store = Store(day.state / FILE)
    rows = overview(day.state, store, NOW, DAY_S)
    assert len(rows) == 2, "the release before and the one in use"
    assert rows[0].state == "WARNING" and rows[0].in_use
    assert rows[0].release == current_release(day.state, store)
    assert "drift" in {one.kind for one in rows[0].incidents}
    assert sum(row.requests for row in rows) > 500
    assert all(row.rss_mib and row.confidence and row.tokens_per_s for row in rows)
    assert NOW - 120 < max(one.until for one in store.series(NOW - DAY_S, NOW, rows[0].release)) <= NOW + 60
    assert store.window(NOW - DAY_S, NOW).last_seen == NOW
    hours = [store.window(NOW - (n + 1) * 3600, NOW - n * 3600).requests for n in range(24)]
    assert min(hours) < max(hours) / 2, "the rate changes over a day"


def test_drift_was_found_after_it_began_and_somebody_saw_it(day: Settings) -> None:
    found = drift_of(day.state)
    assert found.state == "ACKNOWLEDGED"
    assert NOW - DAY_S < found.since < found.opened < NOW
    assert f"since {clock(found.since, found.opened)}." in found.what
    timeline = Incidents(day.state).timeline(found.id)
    assert [change["what"] for change in timeline] == ["opened", "acknowledged"]
    assert found.opened == timeline[0]["time"] < timeline[1]["time"] < NOW
    assert {row.state for row in Incidents(day.state).find(everything=True)} > {"RESOLVED"}


def test_a_switch_came_some_hours_before_the_drift(day: Settings) -> None:
    found = drift_of(day.state)
    before = switches(day.state, found.since - DAY_S, found.since)
    assert [one.what for one in before][-3:] == ["promote", "try", "good"]
    assert before[-1].release == found.release
    assert 3600 < found.since - before[-1].time < 8 * 3600


def test_evidence_is_of_its_incident_and_of_this_day(day: Settings) -> None:
    for incident in Incidents(day.state).find(everything=True):
        document = evidence.read(evidence.path_of(day.state, incident.id))
        assert document is not None
        assert document["incident"]["what"] == incident.what
        assert document["captured"] == incident.opened
        assert all(NOW - 4 * DAY_S < one <= NOW for one in times_in(document))


def test_the_audit_log_holds_and_shows_a_changed_line(tmp_path: Path) -> None:
    state = unpack(tmp_path, NOW).state
    entries = Audit(state).entries()
    assert Audit(state).check() == [] and len(entries) >= 2
    assert all(NOW - DAY_S < entry["time"] < NOW for entry in entries)
    assert not any("{" in str(entry["why"]) for entry in entries)
    path = Audit(state).path
    path.write_bytes(path.read_bytes().replace(b"acknowledged", b"silenced"))
    assert Audit(state).check()


def test_releases_and_the_bundle_are_there_without_models(day: Settings) -> None:
    releases = Releases(day.state / "releases")
    assert [one.place for one in releases.list()] == ["current", "previous"]
    assert all(one.imported < NOW - 0.3 * DAY_S for one in releases.list())
    (bundle,) = day.bundles.iterdir()
    manifest = read_manifest(bundle)
    assert manifest["verdict"] == json.loads((bundle / "report.json").read_text("utf-8"))["verdict"] == "pass"
    rows = {file.stem: file.read_text("utf-8").splitlines() for file in (bundle / "samples").iterdir()}
    assert 0 < len(rows.pop("base_few_shot")) < 60, "fewer rows are asked with examples"
    assert rows.keys() == {"base", "tuned", "gguf", "onnx"}
    assert {len(lines) for lines in rows.values()} == {60}
    answers = [[json.loads(line)["answer"] for line in lines] for lines in rows.values()]
    assert len(set(map(tuple, answers))) > 1, "some are answered differently"
    assert not list(day.state.rglob("*.gguf")) + list(day.bundles.rglob("*.gguf"))


def test_times_are_moved_and_nothing_else() -> None:
    told = {"time": 5.0, "value": 5.0, "since": 1, "rule": {"since": 3}}
    assert later(told, 10.0) == {**told, "time": 15.0, "since": 11.0}


def test_the_recorded_build_is_a_whole_one_in_order() -> None:
    lines = demo.read("build")["events"]
    events = [from_json(json.dumps(line), pytest.fail) for line in lines]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    started = [event.stage for event in events if isinstance(event, StageStarted)]
    finished = [event.stage for event in events if isinstance(event, StageFinished)]
    assert started == finished and started[:3] == ["model", "tune", "merge"] and "profile.onnx" in started
    losses = [event for event in events if isinstance(event, Measured) and event.metric == "loss"]
    assert [event.step for event in losses] == list(range(1, 201)) and losses[0].value > losses[-1].value
    assert sum(isinstance(event, GateResult) for event in events) == len(
        json.loads(demo.read("bundle")["files"]["report.json"])["gates"]
    )
    spans = {event.stage: event.seconds for event in events if isinstance(event, StageFinished)}
    whole = demo.read("build")["seconds"]
    assert 0.99 * whole < sum(spans.values()) <= whole  # between stages, outputs are digested
    assert any(isinstance(event, Progress) and event.stage == "tune" for event in events)


def run_in(settings: Settings, state: str, after: float = 0.0) -> runs.Run | None:
    run = runs.read(settings.cache_dir)
    return run if run and run.state == state and run.started > after else None


def test_before_it_plays_the_build_has_passed(day: Settings) -> None:
    run = run_in(day, "PASSED")
    assert run is not None and run.ended is not None
    assert 0 < NOW - run.ended < 2 * DAY_S
    lines = (day.cache_dir / runs.EVENTS).read_text("utf-8").splitlines()
    times = [from_json(line).time for line in lines]
    assert run.started <= min(times) and max(times) <= run.ended
    imported = min(one.imported for one in Releases(day.state / "releases").list())
    assert run.ended < imported


def test_it_plays_a_build_that_counts_as_running_and_ends(tmp_path: Path) -> None:
    settings = unpack(tmp_path)
    with replay(settings, speed=2000):
        running = until(lambda: run_in(settings, "RUNNING"))
        assert running.stages[0] == "model" and running.model == "smollm2-135m"
        assert running.seconds_expected == pytest.approx(demo.read("build")["seconds"] / 2000)
        done = until(lambda: run_in(settings, "PASSED"))
        assert done.ending
    lines = (settings.cache_dir / runs.EVENTS).read_text("utf-8").splitlines()
    times = [from_json(line).time for line in lines]
    assert times == sorted(times) and running.started <= times[0] and times[-1] <= time.time()
    assert len(lines) == len(demo.read("build")["events"]) + 1


def test_a_build_starts_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.app.views.demo_build.REST_S", 0.0)
    settings = unpack(tmp_path)
    with replay(settings, speed=20_000):
        first = until(lambda: run_in(settings, "RUNNING")).started
        until(lambda: run_in(settings, "RUNNING", after=first))


def test_this_device_goes_on_living(tmp_path: Path) -> None:
    settings = unpack(tmp_path, time.time() - 3600)  # an hour ago: nothing was heard since
    store = Store(settings.state / FILE)
    assert overview(settings.state, store, time.time(), 900)[0].state == "LOST"
    with replay(settings):
        until(lambda: overview(settings.state, store, time.time(), 900)[0].state == "WARNING")
        until(lambda: store.window(time.time() - 120, time.time()).requests)


def test_other_devices_live_beside_it_and_one_is_lost(tmp_path: Path) -> None:
    before = threading.active_count()
    with replay(unpack(tmp_path)) as playing:

        def row(device: Device) -> ReleaseStatus:
            return connect(device).ask(time.time(), 900.0).releases[0]

        fine, slow, lost = playing.devices
        assert row(fine).state == "OK" and row(fine).model == "smollm2-135m"
        assert [one.kind for one in row(slow).incidents] == ["latency"]
        assert row(lost).state == "LOST" and row(lost).requests, "its last numbers are there"
        assert 100 < (row(fine).rss_mib or 0) < 500, "of the recorded process, not of this one"
        waits = row(slow).ttft_p95_s
        assert waits is not None and waits > TTFT_P95_S, "the incident is one of what was recorded"
        seen = row(fine).requests
        until(lambda: row(fine).requests > seen, 20)
    until(lambda: threading.active_count() <= before)
