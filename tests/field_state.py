"""A device's state folder with a bad hour in it: two releases, a switch, minutes of telemetry, incidents."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from field.releases import bundles

from edgekit.field.incidents.watcher import Watched, Watcher
from edgekit.field.releases import Releases
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import Store
from edgekit.targets.rules import Rule

SLOW = Rule(kind="latency", above=5.0, clear=4.0, for_s=30.0, min_requests=3)
FAILING = Rule(kind="errors", above=0.05, for_s=0.0, min_requests=3, severity="critical")
HOT = Rule(kind="temperature", above=80.0, for_s=0.0, window_s=60.0, action="never")


class BadHour(NamedTuple):
    """A state folder after a bad hour, the time, and the releases before and after the switch. Only for reading."""

    state: Path
    now: float
    old: str
    new: str


def answers(
    store: Store, release: str, at: float, *, count: int = 6, ttft_s: float = 0.4, failing: int = 0
) -> None:
    """`count` answers of `release` at `at`, the first `failing` of them errors."""
    for number in range(count):
        finish = "error" if number < failing else "stop"
        store.add(
            Observation(
                at, release, "gguf", "chat", 20, 8, 0.0, ttft_s, ttft_s + 0.5, confidence=0.9, finish=finish
            )
        )


def versions(state: Path, texts: Sequence[str], began: float) -> list[str]:
    """Versions of small bundles, put to use one after the other, a minute between two steps; returns their names."""
    releases = Releases(state / "releases")
    names = []
    for text in texts:
        source = bundles.write(state.parent / f"bundles of {state.name}" / text, text)
        names.append(releases.import_(source, health=bundles.fit).name)
        releases.promote(
            names[-1], who="anna", why=text, health=bundles.fit, compare=bundles.same, allow=["older"]
        )
        releases.mark_good()
    _at(releases.root / "log.jsonl", [began + 30.0 * step for step in range(3 * len(names))])
    return names


def bad_hour(
    state: Path, now: float | None = None, *, rules: Sequence[Rule] = (SLOW, FAILING), hot: bool = False
) -> tuple[str, str]:
    """An hour of one release, which does well, then ten minutes of the next, slow and failing; returns both names."""
    end = time.time() if now is None else now
    switched = end - 600.0
    state.mkdir(parents=True, exist_ok=True)
    old, new_ = versions(state, ["well", "slow"], switched - 180.0)
    store = Store(state / "telemetry.sqlite", every_s=3600)
    for minute in range(70):
        at = end - 60.0 * (69 - minute)
        new = at >= switched
        answers(
            store,
            new_ if new else old,
            at,
            ttft_s=8.0 if new else 0.4 + minute % 5 / 20,
            failing=2 if new else 0,
        )
        store.sample(
            Machine(at, 300.0 + minute, 85.0 if hot and new else 61.0, 0.0, 0.5), new_ if new else old
        )
    store.heartbeat(end)
    store.flush()
    watcher = Watcher(state, rules, Watched(store, lambda: new_ if clock[0] >= switched else old))
    clock = [switched - 60.0]
    while clock[0] < end:
        watcher.tick(clock[0])
        clock[0] += 15.0
    store.close()
    return old, new_


def _at(log: Path, times: Sequence[float]) -> None:
    """Put the lines of the log at `times`."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    for line, at in zip(lines, times, strict=True):
        line["time"] = at
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
