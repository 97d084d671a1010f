"""The record of a build: what others can tell of it while it runs, and however it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from edgekit import registry
from edgekit.base.errors import ConfigError, EdgekitError, StageError
from edgekit.base.events import StageFinished, from_json
from edgekit.build import pipeline, runs

HOLD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins without
from pathlib import Path
from types import SimpleNamespace as S
from edgekit.build import runs
request = S(cache_dir=Path(sys.argv[1]), source=S(name="m"), target=S(name="t"), data=S(name="d"), out=Path("out"))
with runs.recorded(request, ["model", "tune"]):
    print("begun", flush=True)
    time.sleep(60)
"""


def request(cache: Path, **changed: Any) -> Any:
    target = registry.load("profiles", "targets").load("cpu-int4", [])
    parts = {
        "source": SimpleNamespace(name="tiny", path=None),
        "data": SimpleNamespace(name="rows"),
        "target": target,
    }
    return SimpleNamespace(cache_dir=cache, out=Path("bundle"), arguments=(), **{**parts, **changed})


@pytest.fixture
def live(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that builds in `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.communicate()


def read(cache: Path) -> runs.Run:
    run = runs.read(cache)
    assert run is not None
    return run


def test_a_run_passes(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("of the build before\n")
    with runs.recorded(request(tmp_path), ["model", "tune"]) as record:
        during = read(tmp_path)
        assert during.state == "RUNNING" and during.pid == os.getpid() and during.ending == ""
        assert not runs.is_ours(during)
        assert (during.model, during.target, during.data) == ("tiny", "cpu-int4", "rows")
        assert during.stages == ("model", "tune") and during.out == Path("bundle").absolute()
        assert not (tmp_path / "events.jsonl").exists()
        record.judge({"verdict": "pass", "gates": [{"name": "a", "passed": True}]})
    after = read(tmp_path)
    assert after.state == "PASSED" and after.ended is not None and after.ended >= after.started


def test_a_failed_gate_is_named(tmp_path: Path) -> None:
    with runs.recorded(request(tmp_path), []) as record:
        gates = [{"name": "gguf.stop_ids", "passed": False}, {"name": "gguf.weights", "passed": True}]
        record.judge({"verdict": "fail", "gates": gates})
    assert read(tmp_path).state == "FAILED" and read(tmp_path).ending.endswith(": gguf.stop_ids.")


@pytest.mark.parametrize(
    "error, outcome, words",
    [
        (
            StageError("The stage 'tune' could not write.", "Free some room."),
            "error",
            "could not write. Free some room.",
        ),
        (
            ConfigError("Not enough room.", "Free some.", ["disk: 9 MiB needed"]),
            "error",
            "room. disk: 9 MiB needed. Free",
        ),
        (KeyboardInterrupt(), "interrupted", "Interrupted. Finished stages are kept"),
        (ZeroDivisionError("by zero"), "error", "ZeroDivisionError: by zero."),
    ],
)
def test_what_stops_a_run_is_kept_in_words(
    tmp_path: Path, error: BaseException, outcome: str, words: str
) -> None:
    with pytest.raises(type(error)), runs.recorded(request(tmp_path), []):
        raise error
    run = read(tmp_path)
    assert run.state == "STOPPED" and run.outcome == outcome and words in run.ending


def test_a_killed_build_is_stopped_before_anyone_waited_for_it(
    tmp_path: Path, live: subprocess.Popen[str]
) -> None:
    assert read(tmp_path).state == "RUNNING"
    live.send_signal(signal.SIGKILL)
    end = time.monotonic() + 10
    while read(tmp_path).state == "RUNNING":  # it is a zombie now, which nobody has reaped
        assert time.monotonic() < end
    run = read(tmp_path)
    assert (
        run.state == "STOPPED"
        and f"Process {live.pid} ended unexpectedly" in run.ending
        and "same command" in run.ending
    )
    assert runs.rss_mib(run) is None
    with pytest.raises(StageError, match="already ended"):
        runs.interrupt(run)


def test_another_process_with_the_same_number_is_not_taken_for_it(tmp_path: Path) -> None:
    with runs.recorded(request(tmp_path), []):
        path = tmp_path / "run.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "process_start": document["process_start"] - 60}))
        run = read(tmp_path)
        assert psutil.pid_exists(run.pid) and run.state == "STOPPED"
        with pytest.raises(StageError):
            runs.interrupt(run)


def test_a_build_is_interrupted_as_by_ctrl_c(tmp_path: Path, live: subprocess.Popen[str]) -> None:
    runs.interrupt(read(tmp_path))
    live.communicate(timeout=60)
    assert read(tmp_path).outcome == "interrupted" and live.returncode != 0


def test_a_second_build_in_the_cache_is_refused_before_it_touches_anything(
    tmp_path: Path, live: subprocess.Popen[str]
) -> None:
    (tmp_path / "events.jsonl").write_text("of the live build\n")
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        pipeline.build(request(tmp_path), lambda event: None)
    assert str(live.pid) in caught.value.message and "m for t" in caught.value.message
    assert "edgekit tui" in caught.value.hint and "--cache-dir" in caught.value.hint
    assert (tmp_path / "run.json").read_bytes() == before and (tmp_path / "events.jsonl").exists()
    live.kill()
    live.wait()
    with runs.recorded(request(tmp_path), []):  # and taken when that one is gone
        assert read(tmp_path).pid == os.getpid()


def change(cache: Path, **changed: Any) -> None:
    path = cache / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_the_same_number_after_the_machine_started_anew_is_not_the_build(
    tmp_path: Path, live: subprocess.Popen[str]
) -> None:
    assert read(tmp_path).state == "RUNNING" and (read(tmp_path).boot or not runs.BOOT.exists())
    change(tmp_path, boot="00000000-0000-0000-0000-000000000000")
    run = read(tmp_path)
    assert run.state == "STOPPED" and runs.rss_mib(run) is None
    with pytest.raises(StageError, match="already ended"):
        runs.interrupt(run)
    assert live.poll() is None
    with runs.recorded(request(tmp_path), []):
        assert read(tmp_path).pid == os.getpid()


def test_a_build_of_another_machine_is_left_alone(tmp_path: Path, live: subprocess.Popen[str]) -> None:
    change(tmp_path, host="far-away")
    run = read(tmp_path)
    assert run.state == "UNKNOWN" and "started on far-away" in run.ending and not runs.is_ours(run)
    with pytest.raises(StageError, match="far-away; nothing was stopped"):
        runs.interrupt(run)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="far-away") as caught, runs.recorded(request(tmp_path), []):
        pass
    assert "--cache-dir" in caught.value.hint and "run.json" in caught.value.hint
    assert (tmp_path / "run.json").read_bytes() == before and live.poll() is None
    change(tmp_path, outcome="error", ended=1.0, message="No room.")
    assert read(tmp_path).ending == "No room."


def test_a_build_that_has_ended_meanwhile_gets_no_signal(tmp_path: Path, live: subprocess.Popen[str]) -> None:
    seen = read(tmp_path)
    assert seen.state == "RUNNING"
    change(tmp_path, outcome="pass", ended=time.time())
    with pytest.raises(StageError, match="already ended"):
        runs.interrupt(seen)
    change(tmp_path, outcome=None, started=seen.started + 5)  # another build of that process
    with pytest.raises(StageError, match="already ended"):
        runs.interrupt(seen)
    time.sleep(0.2)
    assert live.poll() is None


def stopped_before(cache: Path) -> tuple[bytes, bytes]:
    """A build in the cache that stopped on the way."""
    with pytest.raises(StageError), runs.recorded(request(cache), ["tune"]) as recorder:
        recorder.begin()
        (cache / "events.jsonl").write_text("why it stopped\n")
        raise StageError("It ran out of memory.", "Free some.")
    assert read(cache).ending.startswith("It ran out of memory.")
    return (cache / "run.json").read_bytes(), (cache / "events.jsonl").read_bytes()


@pytest.mark.parametrize("error", [ConfigError("Not enough room.", "Free some."), KeyboardInterrupt()])
def test_a_build_that_is_refused_leaves_what_tells_of_the_one_before(
    tmp_path: Path, error: BaseException
) -> None:
    before = stopped_before(tmp_path)
    for _ in range(2):
        with pytest.raises(type(error)), runs.recorded(request(tmp_path), []):
            assert read(tmp_path).state == "RUNNING" and not (tmp_path / "events.jsonl").exists()
            raise error
        assert ((tmp_path / "run.json").read_bytes(), (tmp_path / "events.jsonl").read_bytes()) == before
    with runs.recorded(request(tmp_path), []) as recorder:  # and once it makes something that is gone
        recorder.begin()
        assert not (tmp_path / "events.jsonl").exists()
    assert read(tmp_path).message == "The build ended without a verdict."
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".before")]


def test_one_that_was_killed_before_it_made_anything_loses_nothing_either(tmp_path: Path) -> None:
    before = stopped_before(tmp_path)
    code = HOLD.replace("time.sleep(60)", "import os; os.kill(os.getpid(), 9)")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True)
    assert "ended unexpectedly" in read(tmp_path).ending
    with pytest.raises(ConfigError), runs.recorded(request(tmp_path), []):
        raise ConfigError("Not enough room.", "")
    assert ((tmp_path / "run.json").read_bytes(), (tmp_path / "events.jsonl").read_bytes()) == before


def test_a_build_without_room_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stopped_before(tmp_path)

    def refuse(arguments: object) -> None:
        raise ConfigError("Not enough room.", "Free some.")

    monkeypatch.setattr("edgekit.models.source.fetch", lambda source, emit: source)
    monkeypatch.setattr("edgekit.build.bundle.check_free", lambda request: None)
    monkeypatch.setattr(pipeline, "plan", lambda *_, **__: SimpleNamespace(check=refuse))
    monkeypatch.setattr(pipeline, "replace", lambda request, **_: request)
    with pytest.raises(ConfigError, match="Not enough room"):
        pipeline.build(request(tmp_path), lambda event: None)
    assert ((tmp_path / "run.json").read_bytes(), (tmp_path / "events.jsonl").read_bytes()) == before


def test_memory_of_a_run_is_that_of_its_processes(tmp_path: Path, live: subprocess.Popen[str]) -> None:
    found = runs.rss_mib(read(tmp_path))
    assert found is not None and 5 < found < 2000
    assert runs.is_ours(read(tmp_path))


def test_the_times_of_stages_are_handed_on_to_the_next_build_of_the_same(tmp_path: Path) -> None:
    with runs.recorded(request(tmp_path), []) as record:
        record.emit(StageFinished("tune", 12.5))
        assert read(tmp_path).seconds == {"tune": 12.5}
        record.emit(StageFinished("merge", 3.0, cached=True))
        record.expect(600.0)
    with runs.recorded(request(tmp_path), []):
        assert (
            read(tmp_path).seconds == {"tune": 12.5, "merge": 3.0} and read(tmp_path).seconds_expected is None
        )
    with runs.recorded(request(tmp_path, source=SimpleNamespace(name="other")), []):
        assert read(tmp_path).seconds == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"schema": "edgekit.run/2"}',
        '{"schema": "edgekit.run/1"}',
        "[" * 100_000,
        "\x00" * 64,
    ],
)
def test_a_damaged_record_is_a_stopped_run_that_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    run = read(tmp_path)
    assert run.state == "STOPPED" and "cannot be read" in run.ending
    with runs.recorded(request(tmp_path), ["model"]):  # and does not stop the next build
        assert read(tmp_path).state == "RUNNING"


@pytest.mark.parametrize(
    "key, value", [("pid", "x"), ("pid", 10**30), ("process_start", None), ("started", 1e999), ("outcome", "fine"),
                   ("stages", 3), ("seconds", []), ("seconds_expected", "long"), ("pid", -1), ("out", None)],
)  # fmt: skip
def test_a_record_with_a_wrong_value_never_raises_and_never_runs(
    tmp_path: Path, key: str, value: Any
) -> None:
    with runs.recorded(request(tmp_path), []):
        pass
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    assert read(tmp_path).state != "RUNNING"


def test_no_record_is_no_run_and_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    assert runs.read(tmp_path / "nowhere") is None
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EdgekitError, match="Nothing can be written"),
        runs.recorded(request(tmp_path / "file"), []),
    ):
        pass


def test_the_names_of_stages_are_those_that_a_build_emits(tiny_build) -> None:
    cache = tiny_build.folder / "cache"
    events = [from_json(line) for line in (cache / "events.jsonl").read_text().splitlines()]
    finished = [event.stage for event in events if isinstance(event, StageFinished)]
    run = read(cache)
    assert list(run.stages) == finished
    target = registry.load("profiles", "targets").load(str(tiny_build.folder / "tiny.toml"), [])
    assert pipeline.stage_names(target, {}) == finished
    assert run.state == "PASSED" and set(run.seconds) == set(finished) and run.seconds_expected
    assert not {getattr(event, "stage", "") for event in events} - {*finished, "merge.proof", ""}


def test_pruning_adds_its_stages() -> None:
    target = registry.load("profiles", "targets").load("cpu-int4", ["prune.drop_layers=2"])
    names = pipeline.stage_names(target, {})
    assert names[names.index("merge") + 1] == "prune" and "drift.prune" in names
    assert len(set(names)) == len(names)
