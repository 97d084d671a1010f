"""The demo goes on: the build plays again and again, this device lives, and so do others, each in a state folder beside it.

All devices give recorded answers, each from its own stretch, through the product's own store: two of the others those
of this device's good hours, one those to long conversations, which it is slow to begin. The last of them is lost.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit.app.views.demo import read
from edgekit.app.views.demo_build import RecordedBuild
from edgekit.app.views.settings import Settings
from edgekit.device.manifest import MANIFEST
from edgekit.field.fleet.device import Device
from edgekit.field.incidents.defaults import default_rules
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.incidents.rules import Change
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import FILE, Store

SPEED = 20.0  # times as fast as it was: a whole build in a minute
LOOK_S = 0.2
BEAT_S = 5.0
ANSWER_S = 20.0  # between two answers of this device: sooner than it was, so that there is something to see
OTHERS = {"line-2": 4.0, "line-3": 12.0, "line-4": 5.0}  # seconds between two answers
BEFORE_S = 300.0  # for which the others have answered already
LOST_S = 120.0  # since the last heartbeat of the one that is lost


@contextlib.contextmanager
def replay(settings: Settings, speed: float = SPEED) -> Iterator[Settings]:
    """Play while the demo is looked at; yields the settings with the other devices."""
    day, bundle = read("day"), read("bundle")
    build = RecordedBuild(settings, read("build"), bundle, speed)
    rss_mib = max(float(rss_mib) for _, _, rss_mib, _ in day["machine"][-60:])
    good = [seen for seen in day["answers"] if seen["release"] == day["answers"][0]["release"]]
    stretches = (good[: len(good) // 2], day["long"], good[len(good) // 2 :])
    living = [_Living(settings.state, day["answers"][-100:], ANSWER_S, rss_mib)]
    devices = []
    for (name, every_s), answers in zip(OTHERS.items(), stretches, strict=True):
        device = Device(name, state=settings.state.parent / "others" / name)
        devices.append(device)
        version = device.folder / "releases" / "versions" / answers[0]["release"]
        version.mkdir(parents=True)
        (version / MANIFEST).write_text(bundle["files"][MANIFEST], encoding="utf-8")
        living.append(_Living(device.folder, answers, every_s, rss_mib))
        living[-1].begin(time.time() - (LOST_S if name == "line-4" else 0.0))
    living.pop().store.close()
    stop = threading.Event()

    def play() -> None:
        while not stop.wait(LOOK_S):
            now = time.time()
            with contextlib.suppress(OSError):  # the folder went: there is nobody to show it to
                build.play(now)
            for one in living:
                one.live(now)

    playing = threading.Thread(target=play, name="demo", daemon=True)
    playing.start()
    try:
        yield replace(settings, devices=(*settings.devices, *devices))
    finally:
        stop.set()
        playing.join()
        for one in living:
            one.store.close()


class _Living:
    """A device: its heartbeat, its memory, and an answer each `every_s` seconds, in its own store."""

    def __init__(
        self, state: Path, answers: Sequence[Mapping[str, Any]], every_s: float, rss_mib: float
    ) -> None:
        self.store = Store(state / FILE)
        self._state, self._release = state, str(answers[-1]["release"])
        self._slowest = max(seen["ttft_s"] or 0.0 for seen in answers)
        self._answers, self._every_s, self._rss_mib = itertools.cycle(answers), every_s, rss_mib
        self._beat = self._answer = 0.0

    def begin(self, now: float) -> None:
        """Have answered for a while; with an incident where the answers are slow to begin."""
        moment = now - BEFORE_S
        while moment <= now:
            self.live(moment)
            moment += BEAT_S
        self.store.flush()
        (rule,) = (rule for rule in default_rules() if rule.kind == "latency")
        if self._slowest > rule.limit:
            opened = Change("opened", rule, self._release, self._release, now, now, self._slowest)
            Incidents(self._state).open(opened, who="watcher")

    def live(self, now: float) -> None:
        """What is due at `now`, Unix seconds."""
        if now - self._beat >= BEAT_S:
            self._beat = now
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
            self.store.sample(Machine(now, self._rss_mib, None, None, load), self._release)
            self.store.heartbeat(now)
        if now - self._answer >= self._every_s:
            self._answer = now
            self.store.add(Observation(**{**next(self._answers), "time": now}))
