"""The status document: what it holds, that its reader takes only what is sound, and that `serve` guards it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import field_state
import httpx
import pytest
from field.serving.scripted import Running, Scripted

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.device.loaded import LoadedModel
from edgekit.field import status
from edgekit.field.serving.api import create_app
from edgekit.field.telemetry.metrics import Metrics
from edgekit.field.telemetry.store import Store


def document(state: Path, window_s: float = 3600.0) -> dict[str, Any]:
    found = status.device_status(state, Store(state / "telemetry.sqlite"), time.time(), window_s)
    told: dict[str, Any] = json.loads(json.dumps(found.to_dict()))
    return told


def test_a_document_holds_incidents_with_steps_rules_and_a_series(tmp_path: Path) -> None:
    old, new = field_state.bad_hour(tmp_path)
    told = document(tmp_path)
    row = told["releases"][0]
    assert told["schema"] == "edgekit.monitor/1" and told["release"] == row["release"] == new
    assert row["state"] == told["state"] == "CRITICAL" and row["why"] and row["hint"]
    assert {one["kind"] for one in row["incidents"]} == {"latency", "errors"}
    assert all(one["id"] and one["next_steps"][0]["text"] for one in row["incidents"])
    assert any(rule["kind"] == "heartbeat" and rule["above"] == 30.0 for rule in told["rules"])
    series = row["series"]
    assert series["step_s"] == 60 and {
        len(series[name]) for name in ("requests", "ttft_p95_s", "errors")
    } == {60}
    assert sum(series["requests"]) == row["requests"] > 0 and max(filter(None, series["ttft_p95_s"])) > 5
    assert None in series["ttft_p95_s"]  # the release before answered then
    assert {one["release"] for one in told["releases"]} == {old, new}


def test_a_long_window_has_few_points_that_add_up(tmp_path: Path) -> None:
    field_state.bad_hour(tmp_path)
    for row in document(tmp_path, 86_400.0)["releases"]:
        assert len(row["series"]["requests"]) <= status.MOST_POINTS
        assert sum(row["series"]["requests"]) == row["requests"]


def test_the_reader_gives_back_what_was_built_and_reads_older_documents(tmp_path: Path) -> None:
    field_state.bad_hour(tmp_path)
    told = document(tmp_path)
    assert json.loads(json.dumps(status.read_status(told).to_dict())) == told
    for row in told["releases"]:
        for name in ("device", "model", "why", "hint", "trouble_since", "series"):
            del row[name]
    older = {name: told[name] for name in ("schema", "device", "time", "window_s", "state", "releases")}
    read = status.read_status(older)
    states = [row["state"] for row in told["releases"]]
    assert [row.state for row in read.releases] == states and read.releases[0].why


@pytest.mark.parametrize(
    "change", [{"schema": "other"}, {"releases": [{"release": 3}]}, {"releases": None}, {"time": 1e300}]
)
def test_another_document_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    field_state.bad_hour(tmp_path)
    with pytest.raises(CorruptError):
        status.read_status({**document(tmp_path), **change})


def test_foreign_texts_and_numbers_are_made_safe(tmp_path: Path) -> None:
    field_state.bad_hour(tmp_path)
    told = document(tmp_path)
    told["releases"][0]["incidents"][0]["what"] = "hot\x1b[2J"
    told["releases"][0]["tokens_per_s"] = float("inf")
    told["releases"][1]["state"] = "FINE\x1b[0m"
    first, second = status.read_status(told).releases
    assert first.tokens_per_s is None and "\x1b" not in first.incidents[0].what + first.why
    assert second.state == "LOST" and "unknown state" in second.why and "\x1b" not in second.why


def test_a_clock_that_was_ahead_does_not_hide_a_dead_device(tmp_path: Path) -> None:
    field_state.bad_hour(tmp_path, time.time() - 900.0)
    store = Store(tmp_path / "telemetry.sqlite", every_s=3600)
    store.heartbeat(time.time() + 10 * 86_400)
    store.flush()
    store.close()
    assert document(tmp_path)["state"] == "LOST"


def test_serve_offers_it_to_those_who_may_ask(scripted: Callable[..., Running], tmp_path: Path) -> None:
    running = scripted()
    metrics = Metrics("tiny")

    def told(window_s: float) -> dict[str, Any]:
        return {"schema": "edgekit.monitor/1", "window_s": window_s}

    app = create_app(running.engine, metrics, token="secret", status=told)

    async def ask(path: str, token: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get(path, headers={"authorization": f"Bearer {token}"})

    import asyncio

    assert asyncio.run(ask("/status", "wrong")).status_code == 401
    assert asyncio.run(ask("/status", "secret")).json()["window_s"] == 900.0
    assert asyncio.run(ask("/status?window=3600", "secret")).json()["window_s"] == 3600.0
    assert asyncio.run(ask("/status?window=1e9", "secret")).status_code == 400
    assert asyncio.run(ask("/status?window=nan", "secret")).status_code == 400
    with pytest.raises(ConfigError):
        status.window_option("-1")


def test_the_model_name_follows_a_switch_and_earlier_names_are_accepted(
    scripted: Callable[..., Running],
) -> None:
    running = scripted()

    def ask(name: str) -> httpx.Response:
        body = {"model": name, "messages": [{"role": "user", "content": "Hi"}]}
        return httpx.post(f"{running.url}/v1/chat/completions", json=body)

    assert ask("tiny").json()["model"] == "tiny" and ask("default").status_code == 200
    assert ask("bigger").status_code == 404
    other = LoadedModel(Scripted(str.upper), format="gguf", max_tokens=64)  # type: ignore[arg-type]
    running.engine.swap(other, release="second", name="bigger")
    assert ask("bigger").json()["model"] == ask("tiny").json()["model"] == "bigger"
    assert httpx.get(f"{running.url}/v1/models").json()["data"][0]["id"] == "bigger"
    assert ask("third").status_code == 404
