"""Servers in threads: on the tiny bundle, and on a scripted model."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from field.serving.scripted import Running, Scripted

import edgekit
from edgekit.device.loaded import LoadedModel
from edgekit.field.serving import server as serving
from edgekit.field.serving.api import create_app
from edgekit.field.serving.connections import ConnectionLimits
from edgekit.field.serving.engine import Engine
from edgekit.field.telemetry.collector import Telemetry
from edgekit.field.telemetry.metrics import Metrics
from edgekit.field.telemetry.observation import Observation

Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a server on a model; it is stopped after the test."""
    with contextlib.ExitStack() as stack:

        def begin(
            model: LoadedModel,
            *,
            token: str | None = None,
            drain_s: float = 10,
            limits: ConnectionLimits = ConnectionLimits(),
            **options: Any,
        ) -> Running:
            seen: list[Observation] = []
            telemetry = Telemetry.open(tmp_path / "state", options.get("source"), model.format, beat_s=None)
            stack.callback(telemetry.close)
            options.setdefault("release", telemetry.release)
            engine: Engine
            metrics = Metrics("tiny", lambda: engine.waiting, lambda: engine.running)
            telemetry.listeners += [metrics.observe, seen.append]
            model.telemetry = telemetry
            engine = Engine(model, name="tiny", **options)
            bound = serving.listen("127.0.0.1", 0)
            listening = threading.Event()
            app = create_app(engine, metrics, token=token)
            server = serving.Server(app, engine, limits=limits, drain_s=drain_s, ready=listening.set)
            thread = threading.Thread(target=serving.serve, args=(server, bound, engine))
            thread.start()
            assert listening.wait(10)

            def stop() -> None:
                server.stop()
                thread.join(20)
                assert not thread.is_alive()

            stack.callback(stop)
            return Running(engine, server, serving.address_of(bound), seen, model.runtime)

        yield begin


@pytest.fixture
def scripted(start: Start) -> Callable[..., Running]:
    """Start a server on a scripted model."""

    def begin(reply: Callable[[str], str] = lambda text: text, **options: Any) -> Running:
        runtime = Scripted(reply, gated=options.pop("gated", False))
        model = LoadedModel(runtime, format="gguf", max_tokens=64)  # type: ignore[arg-type]
        running = start(model, **options)

        def let_go() -> None:  # before the server stops, so that nothing waits for a permit
            if runtime.gate:
                runtime.gate.release(100_000)

        original = running.server.stop
        running.server.stop = lambda: (let_go(), original())[1]  # type: ignore[method-assign]
        return running

    return begin


@pytest.fixture
def tiny(tiny_build: Any, start: Start) -> Running:
    """A server on the tiny bundle's GGUF file."""
    model = edgekit.load(tiny_build.bundle, "gguf", threads=1)
    return start(model, source=tiny_build.bundle, queue_size=64)
