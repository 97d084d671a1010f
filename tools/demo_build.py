"""The events of a whole build, from the log of one and from what its stages recorded; part of `record_demo.py`.

How long each stage took, every measurement and every gate is as it was recorded, and so are the ticks of stages that ran.
A stage that came from the cache has no ticks in the log: those of tune are made of its recorded steps, those of an
evaluation of its recorded rows, and the others are laid out evenly over the recorded seconds, without a reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekit.app.demo import SCHEMA
from edgekit.base.events import Progress, StageFinished, StageStarted

TICKS = 40  # of a stage whose own were not recorded
APART_S = 0.5  # between two recorded ticks that are kept
BUILD_STAGES = {
    "reference": (51, "sequences"),
    "drift.model": (51, "sequences"),
    "merge": (134.5, "M weights"),
}


def build_of(cache_dir: Path, bundle: Path) -> dict[str, Any]:
    """The events of a whole build, their times in seconds from its start."""
    lines = (cache_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    stages: list[list[dict[str, Any]]] = [[]]
    for event in map(json.loads, lines):
        stages[-1].append(event)
        if event["event"] == "StageFinished":
            stages.append([])
    last = stages.pop()  # the gates of the budget, after all stages
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    tensors = next(e["total"] for s in stages for e in s if e.get("unit") == "tensors")
    mib = report["artifacts"][0]["bytes"] / 2**20
    events: list[dict[str, Any]] = []
    start = 0.0
    for inside in stages:
        *facts, finished = inside
        name, seconds = finished["stage"], finished["seconds"]
        events.append(_line(StageStarted(name, time=start)))
        if finished["cached"]:
            units = {**BUILD_STAGES, "quantize.gguf": (tensors, "tensors"), "export.gguf": (mib, "MiB")}
            told = [*_at_the_end(facts, seconds), *_laid_out(name, seconds, facts, units, bundle, report)]
        else:
            began = facts[0]["time"]
            told = [{**e, "time": e["time"] - began} for e in _thinned(facts[1:])]
        for event in sorted(told, key=lambda event: event["time"]):
            events.append({**event, "time": round(start + min(event["time"], seconds), 3)})
        start += seconds
        events.append(_line(StageFinished(name, round(seconds, 3), time=start)))
    events += [{**event, "time": round(start, 3)} for event in last]
    return {"schema": SCHEMA, "seconds": round(start, 3), "events": events}


def _line(event: StageStarted | StageFinished | Progress) -> dict[str, Any]:
    return {"event": type(event).__name__, **asdict(event), "time": round(event.time, 3)}


def _at_the_end(facts: Sequence[dict[str, Any]], seconds: float) -> Iterator[dict[str, Any]]:
    """Recorded facts by their recorded distances, the last of them at the stage's end."""
    end = max((fact["time"] for fact in facts), default=0.0)
    for fact in facts:
        yield {**fact, "time": max(0.0, seconds - (end - fact["time"]))}


def _thinned(events: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every event but ticks that follow another closely."""
    shown = 0.0
    for event in events:
        if event["event"] == "Progress":
            if event["time"] - shown < APART_S and event["done"] != event["total"]:
                continue
            shown = event["time"]
        yield event


def _laid_out(
    name: str,
    seconds: float,
    facts: Sequence[dict[str, Any]],
    units: Mapping[str, tuple[float, str]],
    bundle: Path,
    report: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """The ticks of a stage that came from the cache."""
    if name == "tune":
        yield from _of_losses(list(_at_the_end(facts, seconds)))
        return
    correct: list[bool] = []
    total, unit = units.get(name, (0, ""))
    if name.startswith("eval."):
        file = bundle / "samples" / f"{name.removeprefix('eval.')}.jsonl"
        correct = [json.loads(line)["correct"] for line in file.read_text(encoding="utf-8").splitlines()]
        total, unit = len(correct), "rows"
    if name.startswith("profile."):
        threads = sorted({row["threads"] for row in report["profile"]})
        for done, count in enumerate(threads):
            at = seconds * done / len(threads)
            yield _line(Progress(name, done, len(threads), "thread counts", f"{count} threads", at))
        return
    for tick in range(1, TICKS + 1) if total else ():
        done = round(total * tick / TICKS, 0 if unit in ("rows", "tensors", "sequences") else 1)
        share = sum(correct[: int(done)]) / done if correct else None  # as far as the recorded rows go
        note = "" if share is None else f"accuracy {share:.1%}"
        yield _line(Progress(name, done, total, unit, note, seconds * tick / (TICKS + 1)))


def _of_losses(facts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The ticks of tune: one a step, with its recorded readings."""
    last = max(fact["step"] for fact in facts)
    validation: dict[int, float] = {f["step"]: f["value"] for f in facts if f["metric"] == "validation_loss"}
    losses = {fact["step"]: fact["value"] for fact in facts if fact["metric"] == "loss"}
    shown: float | None = None
    for fact in facts:
        if fact["metric"] != "tokens_per_s":
            continue
        step = fact["step"]
        shown = validation.get(step, shown)
        readings = [f"loss {losses[step]:.2f}", *([] if shown is None else [f"val {shown:.2f}"])]
        note = " · ".join([*readings, f"{fact['value']:.0f} tok/s"])
        yield _line(Progress("tune", step, last, "steps", note, fact["time"]))
