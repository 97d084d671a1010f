"""Screen 2: a build of another process appears by itself, is watched, stopped, and told of however it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from textual.widgets import Input
from tui_support import app, run, text_of, until

from edgekit.app.screens.base import View
from edgekit.app.screens.chart import Chart
from edgekit.app.screens.dialogs import Ask, Confirm
from edgekit.app.views.run import RunReader
from edgekit.base.artifacts import write_json
from edgekit.base.events import (
    Alert,
    Event,
    GateResult,
    Measured,
    Progress,
    StageFinished,
    StageStarted,
    to_json,
)
from edgekit.build import runs
from edgekit.tui import EdgekitApp

STAGES = (
    "model", "tune", "merge", "export.gguf", "quantize.gguf", "export.onnx", "reference", "drift.model", "verify.gguf",
    "verify.onnx", "eval.base", "eval.tuned", "eval.gguf", "eval.onnx", "golden.gguf", "golden.onnx", "signals.gguf",
    "signals.onnx", "profile.gguf", "profile.onnx",
)  # fmt: skip
BUILD = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins without
from pathlib import Path
from types import SimpleNamespace as S
from edgekit.build import runs
from edgekit.base.events import StageFinished, StageStarted, jsonl_writer
cache = Path(sys.argv[1])
request = S(cache_dir=cache, source=S(name="m"), target=S(name="t"), data=S(name="d"), out=cache / "out")
with runs.recorded(request, {STAGES!r}) as recorder:
    recorder.begin()
    emit = jsonl_writer(cache / "events.jsonl")
    emit(StageFinished("model", 2.0))
    emit(StageStarted("tune"))
    print("begun", flush=True)
    time.sleep(60)
"""


class Others(View):
    """Stands for the screens that are not tested here."""

    NAME = "results"
    shown: dict[str, Any] = {}  # noqa: RUF012

    def compose_view(self) -> Iterator[Any]:
        yield from ()

    def show(self, **what: Any) -> None:
        Others.shown = what


@pytest.fixture(autouse=True)
def other_screens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EdgekitApp.SCREENS, "results", Others)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache_dir"
    folder.mkdir()
    return folder


def record(cache: Path, **changed: Any) -> None:
    """A build of this very process, which goes on until `ended`."""
    name = SimpleNamespace
    request: Any = SimpleNamespace(
        cache_dir=cache,
        source=name(name="smollm2-135m"),
        data=name(name="demo"),
        target=name(name="cpu-int4"),
        out=cache / "out",
    )
    with runs.recorded(request, STAGES) as recorder:
        recorder.begin()
        document = json.loads((cache / "run.json").read_text())
    write_json(cache / "run.json", {**document, **changed})


def append(cache: Path, *events: Event) -> None:
    with (cache / "events.jsonl").open("a") as file:
        file.writelines(to_json(event) + "\n" for event in events)


def tuning(steps: int = 40) -> list[Event]:
    now = time.time()
    losses = [Measured("tune", "loss", 3.0 / step, "nats", step) for step in range(1, steps)]
    checks = [Measured("tune", "validation_loss", 0.2, "nats", step) for step in (steps // 2, steps - 1)]
    return [
        StageFinished("model", 12.0, cached=True),
        StageStarted("tune", time=now - 60),
        *losses,
        *checks,
        Progress("tune", 1, 100, "steps", "", now - 50),
        Progress("tune", steps, 100, "steps", "loss 0.08", now),
    ]


@pytest.fixture
def live(cache: Path) -> Iterator[subprocess.Popen[str]]:
    """A build in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(cache)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def foreign(cache: Path) -> Iterator[subprocess.Popen[str]]:
    """A build that another program started: a shell, as whose child it runs."""
    line = ["sh", "-c", '"$0" -c "$1" "$2"; exit $?', sys.executable, BUILD, str(cache)]
    shell = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert shell.stdout is not None and shell.stdout.readline() == "begun\n"
    yield shell
    found = runs.read(cache)
    if found is not None and found.alive:
        os.kill(found.pid, signal.SIGKILL)
    shell.communicate()


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_a_run_is_shown_whole(tmp_path: Path, cache: Path, size: tuple[int, int]) -> None:
    record(cache, seconds_expected=600.0)
    append(cache, *tuning())

    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: "tune           RUNNING" in text_of(shown))
            text = text_of(shown)
            assert all(name in text for name in STAGES)
            assert "model          KEPT" in text and "profile.onnx   WAITING" in text
            assert re.search(r"tune +40/100 steps +1 min \d\d s left +loss 0.08", text)
            title = text.splitlines()[1]
            assert "smollm2-135m" in title and "of ~10 min" in title and "rss" in title and "loss" in title
            assert "loss 0.077" in title
            assert f"$ kill -INT {os.getpid()}" in text and "validation loss 0.2000" in text
            await until(pilot, lambda: "c Cancel" in text_of(shown))
            keys = text_of(shown).splitlines()[-1]
            assert "/ Filter" in keys and "q Quit" in keys and "Results" not in keys
            assert shown.screen.query_one(Chart).display and ("loss by step" in text) == (size[0] > 100)

    run(test())


def test_nothing_there_says_what_to_press_and_a_build_in_the_shell_appears(
    tmp_path: Path, cache: Path
) -> None:
    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "No build has run" in text_of(shown))
            await until(pilot, lambda: "Press 1 to build" in text_of(shown))
            assert "$ edgekit build --model" in text_of(shown)
            assert f"--cache-dir {cache}" in shown.screen.shell_command
            record(cache)
            append(cache, StageStarted("model"))
            await until(pilot, lambda: "model          RUNNING" in text_of(shown))

    run(test())


def test_v_goes_from_stages_to_loss_to_drift_in_80_columns(tmp_path: Path, cache: Path) -> None:
    record(cache)
    append(
        cache, *tuning(), GateResult("gguf.mean_kld_nats", 0.21, 0.05, False, "blk.7 is far", "quantize.gguf")
    )

    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "tune           RUNNING" in text_of(shown))
            await until(
                pilot, lambda: "FAILED  gguf.mean_kld_nats 0.21, limit 0.05. blk.7 is far" in text_of(shown)
            )
            await pilot.press("v")
            await until(pilot, lambda: "loss by step" in text_of(shown))
            assert "tune           RUNNING" not in text_of(shown)
            await pilot.press("v")
            await until(pilot, lambda: "420% ✗ FAILED" in text_of(shown))
            await pilot.press("v")
            await until(pilot, lambda: "tune           RUNNING" in text_of(shown))

    run(test())


def test_the_log_is_filtered_and_follows_until_one_scrolls_up(tmp_path: Path, cache: Path) -> None:
    record(cache)
    append(cache, *(Alert("info", f"word {n}") for n in range(200)), Alert("warning", "the last one"))

    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(
                pilot, lambda: "the last one" in text_of(shown) and "log  following" in text_of(shown)
            )
            await pilot.press("pageup")
            await until(pilot, lambda: "not following" in text_of(shown))
            append(cache, Alert("info", "newest"))
            await until(pilot, lambda: len(shown.screen._held) == 202)
            assert "newest" not in text_of(shown)
            await pilot.press("f")
            await until(pilot, lambda: "newest" in text_of(shown))
            await pilot.press("slash")
            await until(pilot, lambda: isinstance(shown.screen, Ask))
            shown.screen.query_one(Input).value = "WORD 17"
            await pilot.press("enter")
            await until(pilot, lambda: "11 of 202 lines hold 'WORD 17'" in text_of(shown))
            assert "word 179" in text_of(shown) and "newest" not in text_of(shown)

    run(test())


async def asked_to_stop(shown: EdgekitApp, pilot: Any) -> None:
    """Press the key that cancels, once the build is seen to run."""
    await until(pilot, lambda: "tune           RUNNING" in text_of(shown))
    await pilot.press("c")
    await until(pilot, lambda: isinstance(shown.screen, Confirm))


def test_cancel_of_a_foreign_build_needs_write_mode_and_asks(
    tmp_path: Path, cache: Path, foreign: subprocess.Popen[str]
) -> None:
    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "tune           RUNNING" in text_of(shown))
            await pilot.press("c")
            await until(pilot, lambda: "started elsewhere" in text_of(shown))
            await pilot.press("w")
            await until(pilot, lambda: isinstance(shown.screen, Confirm))
            await pilot.press("enter")
            await until(pilot, lambda: shown.writing)
            await pilot.press("c")
            await until(
                pilot, lambda: isinstance(shown.screen, Confirm) and "keeps finished" in text_of(shown)
            )
            await pilot.press("escape")
            await until(pilot, lambda: not isinstance(shown.screen, Confirm))
            assert foreign.poll() is None
            await pilot.press("c")
            await until(pilot, lambda: isinstance(shown.screen, Confirm))
            await pilot.press("enter")
            await until(pilot, lambda: "STOPPED  Interrupted. Finished stages are kept" in text_of(shown))
            for words in ("tune           STOPPED", "model          DONE"):
                await until(pilot, lambda words=words: words in text_of(shown))
            await until(pilot, lambda: "c Cancel" not in text_of(shown))

    run(test())
    assert foreign.wait(10) != 0


def test_cancel_of_a_build_that_this_app_started_only_asks(
    tmp_path: Path, cache: Path, live: subprocess.Popen[str]
) -> None:
    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await asked_to_stop(shown, pilot)
            await pilot.press("enter")
            await until(pilot, lambda: "STOPPED  Interrupted" in text_of(shown))

    run(test())


def test_a_build_that_ended_before_the_answer_is_not_stopped_and_that_is_said(
    tmp_path: Path, cache: Path, live: subprocess.Popen[str]
) -> None:
    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await asked_to_stop(shown, pilot)
            document = json.loads((cache / "run.json").read_text())
            write_json(cache / "run.json", {**document, "outcome": "pass", "ended": time.time()})
            await pilot.press("enter")
            said = "This build has already ended; nothing was stopped."
            await until(pilot, lambda: any(said in note.message for note in shown._notifications))

    run(test())
    assert live.poll() is None


def test_leaving_the_app_waits_for_no_look(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at a disk of the network that does not answer."""
    looking, blocked, ends = threading.Event(), threading.Event(), []

    def look(self: RunReader, now: float) -> Any:
        looking.set()
        blocked.wait(10)

    monkeypatch.setattr(RunReader, "read", look)

    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24)) as pilot:
            await until(pilot, looking.is_set)
            ends.append(time.monotonic())

    run(test())
    assert time.monotonic() - ends[0] < 5
    blocked.set()


def test_a_build_of_another_machine_is_told_and_cannot_be_stopped(tmp_path: Path, cache: Path) -> None:
    record(cache, host="far-away")
    append(cache, *tuning())

    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "UNKNOWN  This build was started on far-away" in text_of(shown))
            assert "c Cancel" not in text_of(shown) and "kill" not in text_of(shown)

    run(test())


def test_a_recorded_build_cannot_be_stopped(tmp_path: Path, cache: Path) -> None:
    record(cache)

    async def test() -> None:
        shown = app(tmp_path, "run", demo=True)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(
                pilot, lambda: "model          WAITING" in text_of(shown) and "q Quit" in text_of(shown)
            )
            assert "kill" not in text_of(shown) and "c Cancel" not in text_of(shown)
            screen: Any = shown.screen
            screen.action_cancel()  # it would be this process
            await pilot.pause()
            assert not isinstance(shown.screen, Confirm)

    run(test())


def test_a_killed_build_is_told_as_gone(tmp_path: Path, cache: Path, live: subprocess.Popen[str]) -> None:
    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "tune           RUNNING" in text_of(shown))
            live.kill()
            await until(pilot, lambda: f"Process {live.pid} ended unexpectedly" in text_of(shown))
            assert "STOPPED" in text_of(shown) and "Traceback" not in text_of(shown)

    run(test())


@pytest.mark.parametrize(
    "outcome, word", [("pass", "PASSED  All gates passed."), ("fail", "FAILED  Build finished, but")]
)
def test_the_end_is_a_word_and_enter_shows_the_results(
    tmp_path: Path, cache: Path, outcome: str, word: str
) -> None:
    message = "Build finished, but these gates failed: gguf.size_mib." if outcome == "fail" else ""
    record(cache, outcome=outcome, ended=time.time(), message=message)
    append(cache, *(StageFinished(name, 1.0) for name in STAGES))

    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: word in text_of(shown))
            await until(pilot, lambda: "Results" in text_of(shown))
            await pilot.press("enter")
            await until(pilot, lambda: Others.shown)
            assert Others.shown == {"bundle": cache / "out"}
            Others.shown = {}

    run(test())


def test_a_damaged_record_and_a_log_of_a_gigabyte_are_sentences(tmp_path: Path, cache: Path) -> None:
    (cache / "run.json").write_text("{")
    with (cache / "events.jsonl").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"\xff\n" * 3 + to_json(StageStarted("tune")).encode() + b"\n")

    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "cannot be read" in text_of(shown))
            await until(pilot, lambda: "MiB were skipped" in text_of(shown))
            assert "3 lines of the log" in text_of(shown)

    run(test())


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_ascii_holds_nothing_else_and_a_resize_lays_out_anew(
    tmp_path: Path, cache: Path, size: tuple[int, int]
) -> None:
    record(cache, seconds_expected=600.0)
    append(cache, *tuning())

    async def test() -> None:
        shown = app(tmp_path, "run", ascii=True)
        async with shown.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: "tune           RUNNING" in text_of(shown))
            odd = {
                letter
                for line in text_of(shown).splitlines()[1:-1]
                for letter in line
                if not letter.isascii()
            }
            assert not odd - set("▂▃▄▅▆▇▁█▊▋▌▍▎▏")  # of Textual's own scroll bars
            await pilot.resize_terminal(*((160, 50) if size[0] == 80 else (80, 24)))
            await until(pilot, lambda: ("loss by step" in text_of(shown)) == (size[0] == 80))
            assert all(name in text_of(shown) for name in STAGES)

    run(test())


def test_one_look_and_one_drawing_of_a_long_run_take_no_time(tmp_path: Path, cache: Path) -> None:
    record(cache)
    append(cache, *tuning(20_000))

    async def test() -> None:
        shown = app(tmp_path, "run")
        async with shown.run_test(size=(160, 50), notifications=True) as pilot:
            await until(pilot, lambda: "tune           RUNNING" in text_of(shown))
            screen: Any = shown.screen
            start = time.perf_counter()
            for _ in range(5):
                screen._logged = ()
                screen._draw()
            assert (time.perf_counter() - start) / 5 < 0.1  # 0.02 on an idle machine

    run(test())
