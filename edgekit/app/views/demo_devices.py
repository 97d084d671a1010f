"""The devices of the demo: this one, which goes on living, and three others that answer for their metrics on loopback.

All give recorded answers, each from its own stretch, through the product's own store and metrics: two those of this
device's good hours, one those to long conversations, which it is slow to begin. The last of them is lost after a while.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from edgekit.app.views.devices import Device
from edgekit.field.incidents.defaults import TTFT_P95_S
from edgekit.field.telemetry.machine import MIB, Machine
from edgekit.field.telemetry.metrics import CONTENT_TYPE, Metrics, UnderWay
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import FILE, Store

BEAT_S = 5.0
ANSWER_S = 20.0  # between two answers of this device: sooner than it was, so that there is something to see
OTHERS = (("line-2", 4.0), ("line-3", 12.0), ("line-4", 5.0))  # names, and seconds between two answers
MEMORY = re.compile(rb"(?m)^edgekit_resident_memory_bytes .*$")

Answers = Sequence[Mapping[str, Any]]


def here_of(day: Mapping[str, Any], state: Path) -> Here:
    """This device, with the last answers of the recorded day."""
    return Here(state, day["answers"][-100:], _memory_mib(day))


def others_of(day: Mapping[str, Any], model: str) -> list[Other]:
    """The other devices; none where no port of loopback can be had."""
    release = day["answers"][0]["release"]  # before anything drifted
    good = [seen for seen in day["answers"] if seen["release"] == release]
    answers = (good[: len(good) // 2], day["long"], good[len(good) // 2 :])
    try:
        return [
            Other(name, model, given, every_s, _memory_mib(day))
            for (name, every_s), given in zip(OTHERS, answers, strict=True)
        ]
    except OSError:
        return []


class Here:
    """This device: its heartbeat, its memory, and an answer now and then, in its own store."""

    def __init__(self, state: Path, answers: Answers, rss_mib: float) -> None:
        self._store = Store(state / FILE)
        self._answers = itertools.cycle(answers)
        self._release = str(answers[-1]["release"])
        self._rss_mib = rss_mib
        self._beat = self._answer = 0.0

    def live(self, now: float) -> None:
        """What is due at `now`, Unix seconds."""
        if now - self._beat >= BEAT_S:
            self._beat = now
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
            self._store.sample(Machine(now, self._rss_mib, None, None, load), self._release)
            self._store.heartbeat(now)
        if now - self._answer >= ANSWER_S:
            self._answer = now
            self._store.add(_seen(next(self._answers), now))

    def close(self) -> None:
        """Write what waits."""
        self._store.close()


class Other:
    """Another device: a web server on loopback with the metrics of a serving process. Raises `OSError` without a port."""

    def __init__(self, name: str, model: str, answers: Answers, every_s: float, rss_mib: float) -> None:
        self._metrics = Metrics(model)
        self._answers, self._every_s, self._answered = itertools.cycle(answers), every_s, 0.0
        self._rss_mib = rss_mib
        slow = max(seen["ttft_s"] or 0.0 for seen in answers) > TTFT_P95_S  # as its rule would say
        under_way = [UnderWay("latency", "warning", time.time())] if slow else []
        self._metrics.stand(str(answers[-1]["release"]), under_way)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.device = Device(name, url=f"http://127.0.0.1:{self._server.server_port}/metrics")
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name=f"demo-{name}", daemon=True
        )
        self._thread.start()
        self._open = True

    def live(self, now: float) -> None:
        """Give the answer that is due at `now`, Unix seconds."""
        if now - self._answered >= self._every_s:
            self._answered = now
            self._metrics.observe(_seen(next(self._answers), now))

    def page(self) -> bytes:
        """The metrics, with the memory of the recorded process in place of this one's."""
        value = f"edgekit_resident_memory_bytes {self._rss_mib * MIB}".encode()
        return MEMORY.sub(value, self._metrics.render())

    def close(self) -> None:
        """Answer no more."""
        if self._open:
            self._open = False
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


def _handler(other: Other) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = other.page()
            self.send_response(200)
            self.send_header("content-type", CONTENT_TYPE)
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is written into the terminal."""

    return Handler


def _seen(answer: Mapping[str, Any], now: float) -> Observation:
    return Observation(**{**answer, "time": now})


def _memory_mib(day: Mapping[str, Any]) -> float:
    """The highest memory that the recorded process took in its last hour."""
    return max(float(rss_mib) for _, _, rss_mib, _ in day["machine"][-60:])
