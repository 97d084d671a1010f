"""Streams resampled from the scores that were recorded of the demo bundle; see benchmarks/field_drift.py."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.field.telemetry.drift import DriftAlarm, DriftDetector
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.reference import Signals

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("scores.json").read_text(encoding="utf-8"))
COLUMNS: list[str] = RECORDED["columns"]
TURNS = ("typo_words", "clinc")


def signals() -> Signals:
    """The reference of the demo bundle's GGUF file."""
    return Signals.from_json("gguf", RECORDED["signals"]["formats"]["gguf"])


def answers(stream: str, count: int, seed: int, start: int = 0) -> Iterator[Observation]:
    """`count` answers drawn with replacement from a recorded stream, one a second."""
    mix = signals().classes
    assert mix is not None
    names = list(mix.shares)
    rows = random.Random(f"{stream}/{seed}").choices(RECORDED["streams"][stream], k=count)
    for place, row in enumerate(rows, start):
        values = dict(zip(COLUMNS, row, strict=True))
        yield Observation(
            time=float(place),
            release="demo",
            format="gguf",
            operation="chat",
            answer_tokens=12,
            queue_s=0.0,
            ttft_s=0.1,
            duration_s=0.3,
            confidence=values["confidence"],
            entropy=values["entropy"],
            prompt_tokens=round(values["prompt_tokens"]),
            unknown_rate=values["unknown_rate"],
            label=names[round(values["label"])],
        )


def alarms(detector: DriftDetector, stream: Iterator[Observation]) -> list[DriftAlarm]:
    """Everything that is told over a stream."""
    return [alarm for seen in stream for alarm in detector.update(seen)]
