"""The demo goes on: the build plays again and again, this device lives, and others beside it answer on loopback.

All devices give recorded answers, each from its own stretch, through the product's own store: two of the others those
of this device's good hours, one those to long conversations, which it is slow to begin. The last is lost after a while.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from edgekit.app.views.demo import read
from edgekit.app.views.demo_build import RecordedBuild
from edgekit.app.views.devices import Device
from edgekit.app.views.settings import Settings
from edgekit.field.incidents.defaults import default_rules
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.incidents.rules import Change
from edgekit.field.status import DEFAULT_S, device_status
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import FILE, Store

SPEED = 20.0  # times as fast as it was: a whole build in a minute
LOOK_S = 0.2
LOST_S = 45.0  # after so long one device answers no more
BEAT_S = 5.0
ANSWER_S = 20.0  # between two answers of this device: sooner than it was, so that there is something to see
OTHERS = {"line-2": 4.0, "line-3": 12.0, "line-4": 5.0}  # seconds between two answers


@contextlib.contextmanager
def replay(settings: Settings, speed: float = SPEED, *, lost_s: float = LOST_S) -> Iterator[Settings]:
    """Play while the demo is looked at; yields the settings with the other devices."""
    day, bundle = read("day"), read("bundle")
    build = RecordedBuild(settings, read("build"), bundle, speed)
    rss_mib = max(float(rss_mib) for _, _, rss_mib, _ in day["machine"][-60:])
    good = [seen for seen in day["answers"] if seen["release"] == day["answers"][0]["release"]]
    stretches = (good[: len(good) // 2], day["long"], good[len(good) // 2 :])
    local = _Device(settings.state, day["answers"][-100:], ANSWER_S, rss_mib)
    others = {
        name: _Device(settings.state.parent / "others" / name, answers, every_s, rss_mib)
        for (name, every_s), answers in zip(OTHERS.items(), stretches, strict=True)
    }
    model = json.loads(bundle["files"]["report.json"])["model"]
    stop, began = threading.Event(), time.time()

    def play() -> None:
        while not stop.is_set():
            now = time.time()
            with contextlib.suppress(OSError):  # the folder went: there is nobody to show it to
                build.play(now)
            for device in (local, *others.values()):
                device.live(now)
            others["line-4"].lost = now - began > lost_s
            stop.wait(LOOK_S)

    for device in others.values():
        device.live(began)  # so that it has a status from the first question on
        device.watch()
    with contextlib.ExitStack() as stack:
        for device in (local, *others.values()):
            stack.callback(device.store.close)
        address = stack.enter_context(_served(others, model))
        playing = threading.Thread(target=play, name="demo", daemon=True)
        playing.start()
        try:
            urls = tuple(Device(name, url=f"{address}/{name}") for name in others)
            yield replace(settings, devices=(*settings.devices, *urls))
        finally:
            stop.set()
            playing.join()


class _Device:
    """A device: its heartbeat, its memory, and an answer each `every_s` seconds, in its own store."""

    def __init__(
        self, state: Path, answers: Sequence[Mapping[str, Any]], every_s: float, rss_mib: float
    ) -> None:
        self.state, self.store, self.lost = state, Store(state / FILE), False
        self._release = str(answers[-1]["release"])
        self._slowest = max(seen["ttft_s"] or 0.0 for seen in answers)
        self._answers, self._every_s, self._rss_mib = itertools.cycle(answers), every_s, rss_mib
        self._beat = self._answer = 0.0

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

    def watch(self) -> None:
        """Open an incident where its answers are slow to begin."""
        self.store.flush()
        (rule,) = (rule for rule in default_rules() if rule.kind == "latency")
        if self._slowest > rule.limit:
            now = time.time()
            opened = Change("opened", rule, self._release, self._release, now, now, self._slowest)
            Incidents(self.state).open(opened, who="watcher")

    def document(self, window_s: float, model: str) -> dict[str, Any]:
        """Its status."""
        status = device_status(self.state, self.store, time.time(), window_s)
        releases = [replace(row, model=model) for row in status.releases]
        return replace(status, model=model, releases=releases).to_dict()


@contextlib.contextmanager
def _served(devices: Mapping[str, _Device], model: str) -> Iterator[str]:
    """Give the status of each device at its name, while it is not lost; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            device = devices[parts.path.strip("/")]
            if device.lost:
                return  # without an answer
            window_s = float(parse_qs(parts.query).get("window", [DEFAULT_S])[0])
            body = json.dumps(device.document(window_s, model)).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is written into the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
