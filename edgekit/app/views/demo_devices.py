"""The devices of the demo: this one, which goes on living, and three others that answer for their status on loopback.

All give recorded answers, each from its own stretch, through the product's own store: two those of this device's good
hours, one those to long conversations, which it is slow to begin. The last of them is lost after a while.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from edgekit.app.views.devices import Device
from edgekit.field.incidents.defaults import default_rules
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.incidents.rules import Change
from edgekit.field.status import DEFAULT_S, device_status
from edgekit.field.telemetry.machine import Machine
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import FILE, Store

BEAT_S = 5.0
ANSWER_S = 20.0  # between two answers of this device: sooner than it was, so that there is something to see
OTHERS = (("line-2", 4.0), ("line-3", 12.0), ("line-4", 5.0))  # names, and seconds between two answers

Answers = Sequence[Mapping[str, Any]]


def here_of(day: Mapping[str, Any], state: Path) -> Here:
    """This device, with the last answers of the recorded day."""
    return Here(state, day["answers"][-100:], ANSWER_S, _memory_mib(day))


def others_of(day: Mapping[str, Any], model: str, folder: Path) -> list[Other]:
    """The other devices, with their state folders in `folder`; none where no port of loopback can be had."""
    release = day["answers"][0]["release"]  # before anything drifted
    good = [seen for seen in day["answers"] if seen["release"] == release]
    answers = (good[: len(good) // 2], day["long"], good[len(good) // 2 :])
    try:
        return [
            Other(folder / name, model, given, every_s, _memory_mib(day))
            for (name, every_s), given in zip(OTHERS, answers, strict=True)
        ]
    except OSError:
        return []


class Here:
    """A device: its heartbeat, its memory, and an answer each `every_s` seconds, in its own store."""

    def __init__(self, state: Path, answers: Answers, every_s: float, rss_mib: float) -> None:
        self.store = Store(state / FILE)
        self.release = str(answers[-1]["release"])
        self._answers, self._every_s, self._rss_mib = itertools.cycle(answers), every_s, rss_mib
        self._beat = self._answer = 0.0

    def live(self, now: float) -> None:
        """What is due at `now`, Unix seconds."""
        if now - self._beat >= BEAT_S:
            self._beat = now
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
            self.store.sample(Machine(now, self._rss_mib, None, None, load), self.release)
            self.store.heartbeat(now)
        if now - self._answer >= self._every_s:
            self._answer = now
            self.store.add(_seen(next(self._answers), now))

    def close(self) -> None:
        """Write what waits."""
        self.store.close()


class Other(Here):
    """Another device: it answers for its status on loopback. Raises `OSError` without a port."""

    def __init__(self, state: Path, model: str, answers: Answers, every_s: float, rss_mib: float) -> None:
        super().__init__(state, answers, every_s, rss_mib)
        self._state, self._model = state, model
        self.live(time.time())  # so that it has a status from the first question on
        self.store.flush()
        slowest = max(seen["ttft_s"] or 0.0 for seen in answers)
        (rule,) = (rule for rule in default_rules() if rule.kind == "latency")
        if slowest > rule.limit:
            now = time.time()
            opened = Change("opened", rule, self.release, self.release, now, now, slowest)
            Incidents(state).open(opened, who="watcher")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.device = Device(state.name, url=f"http://127.0.0.1:{self._server.server_port}/status")
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name=f"demo-{state.name}",
            daemon=True,
        )
        self._thread.start()
        self._open = True

    def document(self, window_s: float) -> dict[str, Any]:
        """Its status."""
        status = device_status(self._state, self.store, time.time(), window_s)
        releases = [replace(row, model=self._model) for row in status.releases]
        return replace(status, model=self._model, releases=releases).to_dict()

    def close(self) -> None:
        """Answer no more."""
        if self._open:
            self._open = False
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            super().close()


def _handler(other: Other) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            body = json.dumps(other.document(float(asked.get("window", [DEFAULT_S])[0]))).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is written into the terminal."""

    return Handler


def _seen(answer: Mapping[str, Any], now: float) -> Observation:
    return Observation(**{**answer, "time": now})


def _memory_mib(day: Mapping[str, Any]) -> float:
    """The highest memory that the recorded process took in its last hour."""
    return max(float(rss_mib) for _, _, rss_mib, _ in day["machine"][-60:])
