"""What a person reads while work goes on, off a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from edgekit.base import console
from edgekit.base.events import GateResult, Progress, StageFinished, StageStarted


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def narrated(output: io.StringIO, *, quiet: bool = False) -> console.Narrator:
    return console.Narrator(Console(file=output, width=200), quiet=quiet)


def test_time_left_counts_from_the_first_unit_and_lines_keep_their_distance(clock: list[float]) -> None:
    output = io.StringIO()
    tell = narrated(output)
    tell(StageStarted("tune"))
    clock[0] = 400.0  # five minutes of loading say nothing of the steps that follow
    tell(Progress("tune", 1, 11, "steps"))
    clock[0] = 410.0
    tell(Progress("tune", 3, 11, "steps"))
    clock[0] = 425.0
    tell(Progress("tune", 6, 11, "steps", "loss 0.5"))
    tell(StageFinished("tune", 125.0))
    assert output.getvalue().splitlines() == [
        "tune: started", "tune: 1/11 steps", "tune: 6/11 steps, 25 s left loss 0.5", "  ✓ tune             2 min 05 s",
    ]  # fmt: skip


def test_a_stage_that_counts_the_same_things_twice_begins_its_time_again(clock: list[float]) -> None:
    output = io.StringIO()
    tell = narrated(output)
    for clock[0], done, note in (
        (0.0, 0, "first"),
        (300.0, 30, "first"),
        (310.0, 1, "second"),
        (340.0, 11, "second"),
    ):
        tell(Progress("quantize", done, 31, "layers", note))
    assert output.getvalue().splitlines()[-1] == "quantize: 11/31 layers, 1 min 00 s left second"


def test_quiet_says_only_what_failed() -> None:
    output = io.StringIO()
    tell = narrated(output, quiet=True)
    tell(StageStarted("tune"))
    tell(GateResult("gguf.stop_ids", 1.0, 1.0, True))
    tell(GateResult("gguf.stop_ids", 0.5, 1.0, False, "missing 2 <|im_end|>", "export.gguf"))
    assert output.getvalue() == "  ✗ gguf.stop_ids: 0.5, limit 1. missing 2 <|im_end|>\n"


@pytest.mark.parametrize(
    "seconds, words", [(0.44, "0.4 s"), (12.2, "12 s"), (125, "2 min 05 s"), (3780, "1 h 03 min")]
)
def test_durations_as_people_say_them(seconds: float, words: str) -> None:
    assert console.span(seconds) == words
