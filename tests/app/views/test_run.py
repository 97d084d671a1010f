"""What a run's events add up to, and what is said when they are damaged, missing or of a run that is gone."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.app.views.run import Fold, RunReader, RunView, matching
from edgekit.base.artifacts import write_json
from edgekit.base.events import (
    Alert,
    Event,
    GateResult,
    Measured,
    Progress,
    StageFinished,
    StageStarted,
    from_json,
    to_json,
)
from edgekit.build import runs
from edgekit.build.runs import Run

T = 1_790_000_000.0
STAGES = ("model", "tune", "merge", "export.gguf", "verify.gguf")
RUN = Run(Path("cache"), pid=7, started=T, model="m", target="t", out=Path("o"), stages=STAGES, alive=True)


def folded(*events: Event) -> Fold:
    fold = Fold()
    for event in events:
        fold.add_line(to_json(event))
    return fold


def states(view: RunView) -> dict[str, str]:
    return {stage.name: stage.state for stage in view.stages}


def ended(outcome: Any, **more: Any) -> Run:
    return Run(
        **{
            **{name: getattr(RUN, name) for name in RUN.__dataclass_fields__},
            "alive": False,
            "ended": T + 50,
            "outcome": outcome,
            **more,
        }
    )


def test_every_event_comes_back_as_it_was() -> None:
    events = [
        StageStarted("a", "b", T),
        Progress("a", 1, 2.5, "rows", "n", T),
        Measured("a", "m", 0.1, "x", 3, T),
        StageFinished("a", 1.5, True, "d", T),
        GateResult("g", 1.0, 2.0, False, "d", "a", T),
        Alert("warning", "m", "h", T),
    ]
    assert [from_json(to_json(event)) for event in events] == events
    extra: list[str] = []
    assert from_json(json.dumps({"event": "Alert", "level": "info", "message": "m", "new": 1}), extra.append)
    assert extra == ["new"]


@pytest.mark.parametrize(
    "line",
    ["", "nonsense", "[]", "null", '{"event": "Exploded"}', '{"event": ["Alert"]}', '{"event": "Progress", "stage": "a"}',
     '{"event": "StageFinished", "stage": "a", "seconds": NaN}', '{"event": "StageStarted", "stage": 3}',
     '{"event": "StageStarted", "stage": "a", "time": 1e300}', '{"event": "Alert", "level": "loud", "message": "m"}',
     '{"event": "Measured", "stage": "a", "metric": "m", "value": true}', "[" * 50_000,
     '{"event": "Progress", "stage": "a", "done": 1' + "0" * 400 + ', "total": 2}',
     '{"event": "Measured", "stage": "a", "metric": "loss", "value": 1, "step": 1e999}'],
)  # fmt: skip
def test_a_line_that_holds_no_event_is_a_value_error_and_counted(line: str) -> None:
    with pytest.raises(ValueError):
        from_json(line)
    fold = Fold()
    fold.add_line(line)
    fold.add_line(to_json(StageStarted("tune", time=T)))
    view = fold.view(RUN, T)
    assert states(view)["tune"] == "RUNNING" and (
        not line or "1 lines of the log are damaged" in view.notices[0]
    )


def test_stages_have_a_word_each_and_time_left_counts_from_the_first_unit() -> None:
    fold = folded(
        StageFinished("model", 20.0, cached=True, time=T),
        StageStarted("tune", time=T),
        Progress(
            "tune", 1, 11, "steps", "loss 0.50", T + 300
        ),  # five minutes of loading say nothing of the steps
        Progress("tune", 6, 11, "steps", "loss 0.25", T + 325),
    )
    view = fold.view(RUN, T + 327)
    assert states(view) == {
        "model": "KEPT",
        "tune": "RUNNING",
        **dict.fromkeys(("merge", "export.gguf", "verify.gguf"), "WAITING"),
    }
    current = view.current
    assert current is not None and current.counted == "6/11 steps" and current.note == "loss 0.25"
    assert current.seconds == 327 and current.left_s == pytest.approx(23) and current.fraction == 6 / 11


def test_another_unit_counts_anew_and_a_part_belongs_to_its_stage() -> None:
    fold = folded(
        StageStarted("merge", time=T),
        Progress("merge", 5, 10, "M weights", time=T + 1),
        Progress("merge.proof", 1, 4, "sequences", time=T + 10),
        Progress("merge.proof", 2, 4, "sequences", time=T + 12),
    )
    view = fold.view(RUN, T + 12)
    assert set(states(view)) == set(STAGES)
    assert view.current and view.current.name == "merge" and view.current.left_s == pytest.approx(4)


def test_time_of_the_whole_comes_from_what_stages_took_before() -> None:
    fold = folded(StageStarted("tune", time=T + 10))
    known = {name: 10.0 for name in STAGES} | {"tune": 100.0}
    run = Run(**{**asdict(RUN), "out": RUN.out, "seconds": known})
    fold.add(StageFinished("model", 10.0, time=T + 10))
    assert fold.view(run, T + 30).total_s == pytest.approx(30 + 80 + 30)
    first = Run(**{**asdict(RUN), "out": RUN.out, "seconds_expected": 600.0})
    assert fold.view(first, T + 30).total_s == 600 and fold.view(first, T + 900).total_s == 900
    assert fold.view(RUN, T + 30).total_s is None


def test_a_failed_gate_fails_its_stage_and_says_why() -> None:
    fold = folded(
        StageFinished("export.gguf", 2.0, time=T),
        StageStarted("verify.gguf", time=T),
        GateResult(
            "gguf.mean_kld_nats", 0.2, 0.05, False, "furthest: \x1b[31mblk.7.ffn_down", "export.gguf", T + 1
        ),
    )
    view = fold.view(RUN, T + 2)
    assert states(view)["export.gguf"] == "FAILED" and states(view)["verify.gguf"] == "RUNNING"
    assert view.failed[0].name == "gguf.mean_kld_nats" and "\x1b" not in view.failed[0].detail
    assert view.drift[0].stage == "export.gguf" and view.drift[0].limit == 0.05
    assert any(line.word == "FAILED" and "blk.7" in line.text for line in view.log)


@pytest.mark.parametrize(
    "run, state, tune",
    [
        (ended("interrupted"), "STOPPED", "STOPPED"),
        (ended("error", message="No room."), "STOPPED", "FAILED"),
        (ended(None), "STOPPED", "STOPPED"),
    ],
)
def test_a_stage_under_way_ends_with_its_run(run: Run, state: str, tune: str) -> None:
    view = folded(StageStarted("tune", time=T + 10)).view(run, T + 9999)
    assert view.state == state and states(view)["tune"] == tune and states(view)["merge"] == "WAITING"
    assert view.spent_s == 50 and view.stages[1].seconds == 40 and view.total_s is None


def test_a_million_points_cost_no_more_than_some_hundred() -> None:
    fold = Fold()
    for step in range(100_000):
        fold.add(Measured("tune", "loss", 1.0 / (step + 1), "nats", step, T))
    view = fold.view(RUN, T)
    assert len(view.loss.xs) <= 514 and view.loss.xs[0] == 0 and view.loss.xs[-1] == 99_999
    assert list(view.loss.xs) == sorted(view.loss.xs)


def test_a_loss_that_is_no_number_is_an_alarm_and_no_point() -> None:
    fold = folded(
        Measured("tune", "loss", float("nan"), "nats", 3, T),
        Measured("tune", "loss", float("inf"), "nats", 4, T),
    )
    view = fold.view(RUN, T)
    assert len(view.alerts) == 1 and "nan at step 3" in view.alerts[0].message and not view.loss.xs


def test_facts_of_kept_stages_are_not_told_as_news_but_count() -> None:
    fold = folded(
        Measured("tune", "validation_loss", 0.1, "nats", 50, T - 9999),
        GateResult("source.ok", 1, 1, True, "", "model", time=T - 9999),
        StageFinished("tune", 500.0, cached=True, time=T + 1),
    )
    view = fold.view(RUN, T + 2)
    assert view.validation.ys == (0.1,) and [line.word for line in view.log] == ["KEPT"]
    assert matching(view.log, "tUnE", T) == list(view.log) and not matching(view.log, "gguf", T)


def test_hostile_events_stay_bounded() -> None:
    fold = Fold()
    for n in range(5000):
        fold.add(StageStarted(f"stage{n}", "x" * 100_000, T))
        fold.add(GateResult(f"gate{n}.mean_kld_nats", 2, 1, False, "", "tune", T))
    view = fold.view(RUN, T)
    assert (
        len(view.stages) < 300
        and len(view.failed) <= 200
        and len(view.drift) <= 200
        and len(view.log) <= 2000
    )
    assert max(len(line.text) for line in view.log) < 500


def record(cache: Path, **changed: Any) -> None:
    cache.mkdir(exist_ok=True)
    request: Any = SimpleNamespace(
        cache_dir=cache,
        source=SimpleNamespace(name="m"),
        data=SimpleNamespace(name="d"),
        target=SimpleNamespace(name="t"),
        out=Path("out"),
    )
    with runs.recorded(request, STAGES) as recorder:
        recorder.begin()
        document = json.loads((cache / "run.json").read_text())
    write_json(cache / "run.json", {**document, **changed})


def change(cache: Path, **changed: Any) -> None:
    write_json(cache / "run.json", {**json.loads((cache / "run.json").read_text()), **changed})


def append(cache: Path, *events: Event) -> None:
    with (cache / "events.jsonl").open("a") as file:
        file.writelines(to_json(event) + "\n" for event in events)


def test_a_watch_follows_a_run_of_another_process_and_its_memory(tmp_path: Path) -> None:
    record(tmp_path)
    watch = RunReader(tmp_path)
    now = time.time()
    assert watch.read(now).state == "RUNNING" and states(watch.read(now))["model"] == "WAITING"
    append(tmp_path, StageStarted("model", time=now))
    assert states(watch.read(now))["model"] == "RUNNING"
    append(tmp_path, StageFinished("model", 1.0, time=now), StageStarted("tune", time=now))
    view = watch.read(now)
    assert states(view)["model"] == "DONE" and view.rss_mib and view.available_mib
    change(tmp_path, outcome="pass", ended=now)
    assert watch.read(now).state == "PASSED" and watch.read(now).rss_mib is None


def test_the_next_run_in_the_cache_begins_anew(tmp_path: Path) -> None:
    record(tmp_path, outcome="error", ended=T, message="No room.")
    append(tmp_path, StageStarted("tune"))
    watch = RunReader(tmp_path)
    assert states(watch.read(T))["tune"] == "FAILED"
    record(tmp_path)
    assert set(states(watch.read(T)).values()) == {"WAITING"}


def test_a_log_of_a_gigabyte_is_read_at_its_end_and_earlier_stages_are_done(tmp_path: Path) -> None:
    record(tmp_path)
    with (tmp_path / "events.jsonl").open("wb") as file:
        file.truncate(1 << 30)  # a hole
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    append(tmp_path, StageStarted("merge"))
    start = time.monotonic()
    view = RunReader(tmp_path).read(time.time())
    assert time.monotonic() - start < 2
    assert states(view) == {
        "model": "DONE", "tune": "DONE", "merge": "RUNNING", "export.gguf": "WAITING", "verify.gguf": "WAITING",
    }  # fmt: skip
    assert "first 1020 MiB were skipped" in view.notices[0]


def test_nothing_there_is_a_sentence_and_events_alone_are_shown(tmp_path: Path) -> None:
    view = RunReader(tmp_path / "nowhere").read(T)
    assert view.state == "NONE" and "No build has run in" in view.sentence and json.dumps(view.document())
    append(tmp_path, StageStarted("tune", time=T), StageFinished("tune", 3.0, time=T))
    view = RunReader(tmp_path).read(T)
    assert (
        view.state == "UNKNOWN" and states(view) == {"tune": "DONE"} and "has no run record" in view.sentence
    )
    (tmp_path / "run.json").write_text("{")
    view = RunReader(tmp_path).read(T)
    assert view.state == "STOPPED" and "cannot be read" in view.sentence
    assert json.dumps(view.document(), default=str)


def test_a_finished_build_is_passed_in_every_stage(tiny_build, shell, tmp_path: Path) -> None:
    cache = tiny_build.folder / "cache"  # its latest build may be another test's, which failed as it should
    assert shell(*tiny_build.command(tmp_path / "bundle", cache)).returncode == 0
    view = RunReader(cache).read(time.time())
    assert view.state == "PASSED" and {stage.state for stage in view.stages} <= {"DONE", "KEPT"}
    assert view.loss.xs and view.validation.xs and not view.failed and not view.notices
    assert (
        {"merge", "export.onnx"}
        < {point.stage for point in view.drift}
        <= {stage.name for stage in view.stages}
    )
    assert any(line.word == "PASSED" for line in view.log) or all(
        stage.state == "KEPT" for stage in view.stages
    )
