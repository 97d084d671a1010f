"""Many devices at once: each asked in its own time, the worst first, and one that is silent never shown as fine."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from device_documents import incident, status
from http_server import Server

from edgekit.app.views import fleet_table as table
from edgekit.base.errors import ConfigError
from edgekit.field.fleet import connection
from edgekit.field.fleet.connection import UrlConnection
from edgekit.field.fleet.device import Device, parse_device, read_fleet
from edgekit.field.fleet.fleet import Fleet, FleetView
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.incidents.rules import Change
from edgekit.field.status import DeviceStatus
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import Store
from edgekit.targets.rules import Rule

NOW = 1_800_000_000.0


class Fake:
    """A device that shows what `page` returns; a status below 100 is said to be one that never answers."""

    def __init__(self) -> None:
        self.page: Callable[[str], tuple[int, bytes]] = lambda path: (200, b"")
        self.asked: list[str] = []
        self.tokens: list[str | None] = []
        self.free = threading.Event()
        self.server = Server(self.answer)
        self.url = f"{self.server.url}/status"

    def answer(self, request: BaseHTTPRequestHandler) -> tuple[int, bytes] | None:
        self.asked.append(request.path)
        self.tokens.append(request.headers.get("authorization"))
        status, body = self.page(request.path)
        if status < 100:
            self.free.wait(20)
            return None
        return status, body

    def close(self) -> None:
        self.free.set()
        self.server.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(*devices: Device, state: Path = tmp_path / "none", **options: Any) -> Fleet:
        made.append(Fleet(state, devices, **{"every_s": 0.05, **options}))
        made[-1].start()
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()


def until(fleet: Fleet, condition: Callable[[FleetView], Any], seconds: float = 8.0) -> FleetView:
    end = time.monotonic() + seconds
    while not condition(glance := fleet.view()):
        assert time.monotonic() < end, glance.rows
        time.sleep(0.02)
    return glance


def observation(at: float = 0.0, release: str = "aaa", finish: str = "stop") -> Observation:
    return Observation(at, release, "gguf", "chat", 20, 11, 0.0, 0.2, 0.7, 0.9, finish=finish)


def state(folder: Path, now: float, *, minutes: int = 5, incident: bool = False) -> Path:
    store = Store(folder / "telemetry.sqlite", every_s=3600)
    for minute in range(minutes):
        store.add(observation(now - 60 * minute))
        if minute % 60 == 0:
            store.flush()
    store.heartbeat(now)
    store.close()
    if incident:
        rule = Rule(kind="errors", above=0.05, severity="critical")
        Incidents(folder).open(
            Change("opened", rule, "aaa", "aaa", now, now - 60, 0.2), who="test"
        )  # fmt: skip
    return folder


# tokens


@pytest.mark.parametrize(
    ("address", "words"),
    [("http://10.0.0.3:8080/status", "not sent by plain http"), ("https://10.0.0.3/status", "set EDGEKIT_TOKEN")],
)  # fmt: skip
def test_a_token_that_is_needed_is_told_with_how_to_give_it(
    fake: Fake, make: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch, address: str, words: str
) -> None:
    from http.client import HTTPConnection

    port = fake.server.port
    for kind in ("HTTPConnection", "HTTPSConnection"):  # whatever the address, the answer is that of the fake
        monkeypatch.setattr(
            connection.http.client, kind, lambda *where, **more: HTTPConnection("127.0.0.1", port)
        )
    fake.page = lambda path: (401, b"")
    row = make(parse_device(f"line-3={address}")).settled().rows[0]
    assert "a token is needed" in row.why and words in row.hint and "token_env" in row.hint
    assert set(fake.tokens) == {None}


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_white_space_around_a_token_is_no_part_of_it(
    fake: Fake, make: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    monkeypatch.setenv("EDGEKIT_TOKEN", f"secret{end}")
    path = tmp_path / "fleet.toml"
    path.write_text(f'[[device]]\nname = "b"\nurl = "{fake.url}"\ntoken_env = "EDGEKIT_TOKEN"\n')
    fake.page = lambda path: (200, status())
    glance = make(parse_device(f"a={fake.url}"), *read_fleet(path)).settled()
    assert [row.state for row in glance.rows] == ["OK", "OK"] and set(fake.tokens) == {"Bearer secret"}


def test_what_nobody_foresaw_tells_no_token(fake: Fake, make: Callable[..., Fleet]) -> None:
    device = Device("line-1", fake.url, token="secret")
    object.__setattr__(device, "token", "secret\r\n more")  # http.client's error holds the header

    class Broken(UrlConnection):
        def ask(self, now: float, window_s: float) -> DeviceStatus:
            raise RuntimeError("Bearer secret")

    for options in ({}, {"connection": lambda device: Broken(device)}):
        glance = make(device, **options).settled()
        row = next(row for row in glance.rows if row.device == "line-1")
        assert row.state == "LOST" and row.hint and "secret" not in json.dumps(glance.to_dict())


# devices with a URL


def test_a_url_is_read_again_with_its_token(fake: Fake, make: Callable[..., Fleet]) -> None:
    fake.page = lambda path: (200, status(requests=len(fake.asked)))
    fleet = make(Device("line-1", f"{fake.url}?a=1", token="secret"), window_s=3600.0)
    row = until(fleet, lambda seen: seen.rows and seen.rows[0].requests >= 3).rows[0]
    assert (row.device, row.model, row.release, row.state) == ("line-1", "smol", "7f3a", "OK")
    assert row.series.tokens_per_s == [20.0] * 15 and row.series.ttft_p95_s[-1] is None
    assert set(fake.tokens) == {"Bearer secret"}
    assert set(fake.asked) == {"/status?a=1&window=3600"}


def test_incidents_of_a_url_device_are_told_with_their_number(fake: Fake, make: Callable[..., Fleet]) -> None:
    silenced = incident(3, "warning", silenced_until=time.time() + 600)
    fake.page = lambda path: (200, status(silenced, incident(), state="CRITICAL"))
    fleet = make(Device("line-1", fake.url), every_s=60.0).settled()
    row = fleet.rows[0]
    assert row.state == "CRITICAL" and [one.id for one in row.incidents] == [7, 3] and fleet.silenced == 1
    assert fleet.alert.startswith("line-1 #7: 20.0% of the requests fail")
    assert fleet.to_dict()["devices"][0]["releases"][0]["incidents"][0]["id"] == 7


def test_the_command_needs_no_terminal_app(fake: Fake, tmp_path: Path) -> None:
    fake.page = lambda path: (200, status())
    words = [
        "edgekit",
        "monitor",
        "--once",
        "--device",
        f"line-3={fake.url}",
        "--json",
        "--state",
        str(tmp_path / "none"),
    ]
    code = (
        f"import sys, edgekit.cli; sys.argv = {words!r}\ntry: edgekit.cli.main()\nexcept SystemExit as end: assert not end.code\n"
        "loaded = [name for name in sys.modules if name.startswith(('textual', 'edgekit.app'))]; assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["device"] for row in json.loads(done.stdout)["devices"]] == ["line-3"]


def test_a_device_that_stops_answering_is_lost_with_its_last_numbers(
    fake: Fake, make: Callable[..., Fleet]
) -> None:
    answer = [200]
    fake.page = lambda path: (answer[0], status())
    fleet = make(Device("line-1", fake.url))
    heard = until(fleet, lambda seen: seen.rows and seen.rows[0].state == "OK").rows[0]
    answer[0] = 500
    glance = until(fleet, lambda seen: seen.rows[0].state == "LOST")
    row = glance.rows[0]
    assert row.why.startswith("last heard ") and row.why.endswith("ago; it answers with HTTP 500")
    assert row.rss_mib == heard.rss_mib and row.release == "7f3a" and row.trouble_since
    assert glance.alert.startswith("line-1: last heard") and "Next: check the address" in glance.alert
    answer[0] = 200
    until(fleet, lambda seen: seen.rows[0].state == "OK")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, b"", "401: a token is needed"),
        (404, b"", "404: there is no such page"),
        (302, b"", "HTTP 302"),
        (200, b"<html>", "its answer is not JSON"),
        (200, b"{}", "not a document of schema edgekit.monitor/1"),
        (200, b"x" * (4 * 2**20 + 10), "larger than 4 MiB"),
    ],
)
def test_never_heard_says_why(
    fake: Fake, make: Callable[..., Fleet], status: int, body: bytes, words: str
) -> None:
    fake.page = lambda path: (status, body)
    row = make(Device("line-1", fake.url)).settled().rows[0]
    assert row.state == "LOST" and row.why.startswith("never heard: ") and words in row.why and row.hint


def test_refused_and_unknown_names_are_told_apart(make: Callable[..., Fleet]) -> None:
    gone = Fake()
    gone.close()
    fleet = make(Device("refused", gone.url), Device("unknown", "http://no-such-name.invalid/status"))
    why = {row.device: row.why for row in fleet.settled().rows}
    assert "connection refused" in why["refused"] and "its name is unknown" in why["unknown"]


def test_a_slow_device_is_lost_in_time_and_delays_no_other(
    fake: Fake, make: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UrlConnection, "limit_s", 0.5)
    fake.page = lambda path: (0 if "slow" in path else 200, status())
    slow = [Device(f"slow-{n}", fake.url.replace("status", "slow")) for n in range(10)]
    fleet = make(*slow, Device("quick", fake.url))
    glance = until(fleet, lambda seen: seen.count("LOST") == 10)
    assert sum(path.startswith("/status") for path in fake.asked) >= 5
    assert next(row for row in glance.rows if row.device == "quick").state == "OK"
    assert all("no answer within" in row.why for row in glance.rows if row.state == "LOST")


def test_texts_of_strangers_hold_no_control_characters(fake: Fake, make: Callable[..., Fleet]) -> None:
    fake.page = lambda path: (200, status(model="smol\x1b[31m[bold]", release="\u202e7f3a\x07"))
    row = make(Device("line-1", fake.url)).settled().rows[0]
    assert row.model == "smol\ufffd[31m[bold]" and row.release == "\ufffd7f3a\ufffd"


def test_two_devices_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="same name"):
        Fleet(tmp_path, [Device("a", host="h"), Device("a", host="i")])


# devices by SSH


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in the place of ssh."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(script: str) -> None:
        path = folder / "ssh"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


def document(**changes: Any) -> str:
    incident = {
        "id": 7, "rule": "r", "subject": "aaa", "kind": "errors", "severity": "critical", "action": "suggest",
        "release": "aaa", "what": "20.0% of the requests failed, limit 5.0%, since 14:02.", "since": NOW, "opened": NOW,
        "state": "ACKNOWLEDGED", "silenced_until": None, "resolved": None, "acted": False,
        "next_steps": [{"text": "Go back", "command": "edgekit releases rollback"}],
    }  # fmt: skip
    row = {
        "release": "aaa", "state": "CRITICAL", "in_use": True, "since": NOW - 900, "until": NOW, "requests": 40, "errors": 8,
        "empty": 0, "ttft_p95_s": 0.4, "tokens_per_s": 21.0, "rss_mib": 300.0, "temperature_c": None, "confidence": 0.8,
        "alarms": [], "last_seen": NOW,
    }  # of an earlier edgekit, without the newer keys  # fmt: skip
    releases = [{**row, "incidents": [incident]}]
    return json.dumps({"schema": "edgekit.monitor/1", "device": "x", "releases": releases, **changes})


def test_a_device_is_asked_by_ssh(
    tmp_path: Path, make: Callable[..., Fleet], ssh: Callable[[str], None]
) -> None:
    (tmp_path / "answer").write_text(document())
    ssh(f'printf "%s\\n" "$@" > {tmp_path}/argv; cat {tmp_path}/answer')
    row = make(Device("roof", host="me@roof", state=Path("/var/e d"))).settled().rows[0]
    assert (row.state, row.release, row.requests, row.incidents[0].id) == ("CRITICAL", "aaa", 40, 7)
    assert row.incidents[0].state == "ACKNOWLEDGED" and row.hint == "Go back: edgekit releases rollback"
    sent = (tmp_path / "argv").read_text().splitlines()
    assert sent[-2] == "me@roof" and sent[-1] == (
        "edgekit monitor --once --window 15m --state '/var/e d' --json"
    )


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ('echo "me@roof: Permission denied (publickey)." >&2; exit 255', "Permission denied"),
        ('echo "sh: edgekit: not found" >&2; exit 127', "edgekit is not found there"),
        ("echo hello", "not a document of schema edgekit.monitor/1"),
        ('echo \'{"schema": "edgekit.monitor/1", "releases": [{"release": 3}]}\'', "cannot be read"),
        ('echo \'{"schema": "edgekit.monitor/1", "releases": []}\'', "nothing is recorded there yet"),
    ],
)
def test_ssh_that_fails_says_why(
    make: Callable[..., Fleet], ssh: Callable[[str], None], script: str, words: str
) -> None:
    ssh(script)
    row = make(Device("roof", host="roof")).settled().rows[0]
    assert row.state == "LOST" and words in row.why and row.why.startswith("never heard: ")


HUGE: list[dict[str, Any]] = [
    {"last_seen": 1e300}, {"last_seen": -1e300}, {"last_seen": 1e300, "state": "LOST"}, {"ttft_p95_s": 1e999},
    {"tokens_per_s": math.nan}, {"rss_mib": 1e308, "temperature_c": -1e999, "confidence": 1e999},
    {"requests": 10**4000, "errors": -(10**4000)}, {"since": 1e300}, {"silenced_until": 1e300, "opened": 1e999},
]  # fmt: skip


@pytest.mark.parametrize("changes", HUGE)
def test_numbers_that_none_can_show_end_nothing(
    tmp_path: Path, make: Callable[..., Fleet], ssh: Callable[[str], None], changes: dict[str, Any]
) -> None:
    told = json.loads(document())
    row = told["releases"][0]
    row.update({key: value for key, value in changes.items() if key in row})
    row["incidents"][0].update({key: changes[key] for key in changes if key in row["incidents"][0]})
    (tmp_path / "answer").write_text(json.dumps(told))
    ssh(f"cat {tmp_path}/answer")
    fleet = make(Device("roof", host="roof")).settled()
    seen = fleet.rows[0]
    texts = table.cells(seen, table.columns(200), fleet.time)
    assert "roof" in texts[0] and "inf" not in " ".join(texts) and "nan" not in " ".join(texts)
    assert seen.state == ("LOST" if "last_seen" in changes else "CRITICAL")
    for number in (seen.ttft_p95_s, seen.tokens_per_s, seen.rss_mib, seen.confidence, seen.trouble_since):
        assert number is None or math.isfinite(number)
    assert "Infinity" not in json.dumps(fleet.to_dict()) and "NaN" not in json.dumps(fleet.to_dict())


# this device


def test_this_device_has_its_day_at_once(tmp_path: Path, make: Callable[..., Fleet]) -> None:
    fleet = make(state=state(tmp_path, time.time(), minutes=300), window_s=86400.0)
    row = fleet.settled().rows[0]
    assert row.release == "aaa" and row.state == "OK" and row.requests == 300
    known = [value for value in row.series.ttft_p95_s if value is not None]
    assert 18 <= len(known) <= 22 and len(row.series.ttft_p95_s) == 96  # five hours of 24
    assert len([one for one in table.joined(row.series.ttft_p95_s, 24) if one is not None]) in (5, 6)


def test_an_incident_here_is_told_with_its_number_and_next_step(
    tmp_path: Path, make: Callable[..., Fleet]
) -> None:
    glance = make(state=state(tmp_path, time.time(), incident=True)).settled()
    assert glance.rows[0].state == "CRITICAL" and glance.rows[0].incidents[0].id == 1
    assert "#1: 20.0% of the requests failed, limit 5.0%, since" in glance.alert and "Next: " in glance.alert


def test_a_heartbeat_that_stopped_is_lost(tmp_path: Path, make: Callable[..., Fleet]) -> None:
    row = make(state=state(tmp_path, time.time() - 120)).settled().rows[0]
    assert row.state == "LOST" and row.why.startswith("last heard 2 min") and row.ttft_p95_s is not None


def test_nothing_recorded_yet_says_what_records(tmp_path: Path, make: Callable[..., Fleet]) -> None:
    glance = make(state=tmp_path / "none").settled()
    assert (
        glance.rows == ()
        and glance.empty == "Nothing is recorded yet. Start `edgekit serve BUNDLE` to record."
    )
    assert glance.alert == glance.empty and not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["telemetry.sqlite", "incidents.sqlite"])
def test_a_corrupt_store_is_lost_and_not_fine(tmp_path: Path, make: Callable[..., Fleet], name: str) -> None:
    state(tmp_path, time.time())
    (tmp_path / name).write_bytes(b"no database at all" * 500)
    row = make(state=tmp_path).settled().rows[0]
    assert row.state == "LOST" and name in row.why and "mv" in row.hint


def test_a_store_with_a_hole_is_lost_and_not_fine(tmp_path: Path, make: Callable[..., Fleet]) -> None:
    fleet = make(state=state(tmp_path, time.time()))
    assert fleet.settled().rows[0].state == "OK"
    path = tmp_path / "telemetry.sqlite"
    path.write_bytes(path.read_bytes()[:4096] + b"\xa5" * (path.stat().st_size - 4096))
    row = until(fleet, lambda seen: seen.rows[0].state == "LOST").rows[0]
    assert "telemetry.sqlite cannot be read" in row.why and "mv" in row.hint and row.requests == 5


@pytest.mark.parametrize("left", [False, True])
def test_a_device_whose_records_go_away_stays_and_is_lost(
    tmp_path: Path, make: Callable[..., Fleet], fake: Fake, left: bool
) -> None:
    fake.page = lambda path: (200, status())
    place = state(tmp_path / "state", time.time())
    fleet = make(Device("other", fake.url), state=place)
    until(fleet, lambda seen: seen.count("OK") == 2)
    place.rename(tmp_path / "moved")
    if left:
        place.mkdir()  # as where a disk was mounted
    glance = until(fleet, lambda seen: seen.count("LOST"))
    assert (
        len(glance.rows) == 2
        and "its records are gone" in glance.alert
        and "Next: check whether" in glance.alert
    )
    assert "all well" not in str(table.strip(glance)) and glance.rows[0].requests == 5
    shutil.rmtree(place, ignore_errors=True)
    (tmp_path / "moved").rename(place)
    until(fleet, lambda seen: seen.count("OK") == 2)
