"""The monitor screen as an operator uses it: what is seen at 80 and 160 columns, keys, and devices that go away."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from device_documents import incident, status
from http_server import Server
from textual.widgets import DataTable, Input
from tui_support import app, run, text_of, until

from edgekit.app.screens.chart import Chart, Series
from edgekit.app.screens.dialogs import Ask, Confirm
from edgekit.app.screens.monitor import MonitorScreen, _fitted
from edgekit.app.screens.monitor_table import FleetTable
from edgekit.field.fleet.device import Device
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.incidents.rules import Change
from edgekit.field.status import OpenIncident
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import Store
from edgekit.targets.rules import Rule
from edgekit.tui import EdgekitApp


class Line:
    """Devices behind one server: `/0`, `/1` and so on; those in `silent` answer with an error."""

    def __init__(self, count: int) -> None:
        self.told: list[dict[str, Any]] = [
            {"model": f"smol-{number}", "release": f"{number:x}7f3a"} for number in range(count)
        ]
        self.incidents: list[list[OpenIncident]] = [[] for _ in range(count)]
        self.silent: set[int] = set()
        self.server = Server(self.answer)

    def answer(self, request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        number = int(request.path.partition("?")[0].strip("/"))
        severities = {one.severity for one in self.incidents[number]}
        state = "CRITICAL" if "critical" in severities else "WARNING" if severities else "OK"
        body = status(*self.incidents[number], state=state, **self.told[number])
        return 500 if number in self.silent else 200, body

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(Device(f"line-{n}", f"{self.server.url}/{n}") for n in range(len(self.told)))


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(4)
    yield line
    line.server.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A device that answers, with one incident under way."""
    folder, now = tmp_path / "state", time.time()
    store = Store(folder / "telemetry.sqlite", every_s=3600)
    for minute in range(5):
        store.add(Observation(now - 60 * minute, "aaa", "gguf", "chat", 20, 11, 0.0, 0.2, 0.7, 0.9))
    store.heartbeat(now + 50)
    store.close()
    rule = Rule(kind="errors", above=0.05, severity="critical")
    Incidents(folder).open(Change("opened", rule, "aaa", "aaa", now, now - 60, 0.2), who="test")
    return folder


def screen(shown: EdgekitApp) -> MonitorScreen:
    found = shown.get_screen("monitor")
    assert isinstance(found, MonitorScreen)
    return found


def lines(shown: EdgekitApp) -> list[str]:
    """The rows of the table, as texts."""
    table = screen(shown).query_one(DataTable)
    return [str(table.get_row(row.key)[0]) for row in table.ordered_rows]


def names(shown: EdgekitApp) -> list[str]:
    return [line.split()[0] for line in lines(shown)]


async def write_mode(shown: EdgekitApp, pilot: Any) -> None:
    await pilot.press("w")
    await until(pilot, lambda: isinstance(shown.screen, Confirm))
    await pilot.press("enter")
    await until(pilot, lambda: shown.writing)


@pytest.mark.parametrize(("size", "ascii"), [((80, 24), False), ((80, 24), True), ((160, 50), False)])
def test_the_worst_is_first_and_told_in_a_sentence(
    tmp_path: Path, line: Line, state: Path, size: tuple[int, int], ascii: bool
) -> None:
    line.silent = {2}
    line.incidents[1] = [incident(7, "warning", kind="latency")]

    async def test() -> None:
        shown = app(tmp_path, "monitor", devices=line.devices, ascii=ascii, window_s=900.0)
        async with shown.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: "LOST" in text_of(shown) and "WARNING" in text_of(shown))
            await until(pilot, lambda: len(lines(shown)) == 5 and "CRITICAL" in text_of(shown))
            line.told[0]["tokens_per_s"] = 20.5
            await until(pilot, lambda: any(" 20.5 " in text for text in lines(shown) if "line-0" in text))
            seen = text_of(shown)
            assert next(text.split()[0] for text in lines(shown)) == "line-2"
            states = [
                state
                for text in lines(shown)
                for state in text.split()
                if state in ("LOST", "CRITICAL", "WARNING", "OK")
            ]
            assert states == ["LOST", "CRITICAL", "WARNING", "OK", "OK"]
            assert "5 devices" in seen and "1 LOST" in seen and "1 CRITICAL" in seen and "1 WARNING" in seen
            assert "line-2: never heard: it answers with HTTP 500. Next: check the address" in " ".join(
                seen.split()
            )
            assert "refresh 0.5 s   window 15m   sort worst" in seen
            for hint in ("Filter", "Sort", "Window", "Open", "Ack", "Silence", "Roll back", "Quit"):
                assert hint in seen.splitlines()[-1]
            assert ("p95 in window" in seen) == ("memory MiB" in seen) == (size[0] >= 100)
            assert "p95 ms" in seen and "tok/s" in seen
            assert seen.isascii() == ascii

    run(test())


def test_a_lost_device_is_grey_and_keeps_its_numbers(tmp_path: Path, line: Line) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor", devices=line.devices)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "all well" in text_of(shown))
            before = next(text for text in lines(shown) if text.startswith("line-3"))
            line.silent = {3}
            await until(pilot, lambda: "1 LOST" in text_of(shown))
            table = screen(shown).query_one(FleetTable)
            row = table.get_row_at(table.keys.index("line-3 37f3a"))[0]
            assert names(shown)[0] == "line-3" and "LOST" in str(row)
            memory = before.split()[-2]
            assert memory in str(row) and any("dim" in str(span.style) for span in row.spans)
            await until(pilot, lambda: "last heard" in text_of(shown))
            line.silent = set()
            await until(pilot, lambda: "all well" in text_of(shown))

    run(test())


def test_the_cursor_stays_on_its_row_when_others_get_worse(tmp_path: Path, line: Line) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor", devices=line.devices)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "all well" in text_of(shown))
            line.incidents[3] = [incident(7, "warning", kind="latency")]
            await until(pilot, lambda: names(shown)[0] == "line-3")
            chosen = screen(shown).chosen
            assert chosen is not None and chosen.device == "line-3"  # nobody moved: the worst is chosen
            await pilot.press("down", "down")
            await until(pilot, lambda: screen(shown).chosen.device == "line-1")  # type: ignore[union-attr]
            line.silent = {2}
            await until(pilot, lambda: names(shown) == ["line-2", "line-3", "line-0", "line-1"])
            assert screen(shown).chosen.device == "line-1"  # type: ignore[union-attr]
            assert screen(shown).query_one(DataTable).cursor_row == 3
            assert shown.screen.shell_command.startswith("curl 'http://127.0.0.1")  # type: ignore[attr-defined]

    run(test())


def test_filter_sort_window_and_pace(tmp_path: Path, line: Line) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor", devices=line.devices)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: len(lines(shown)) == 4 and "all well" in text_of(shown))
            await pilot.press("slash")
            await until(pilot, lambda: isinstance(shown.screen, Ask))
            await pilot.press(*"smol-2 ok", "enter")
            await until(pilot, lambda: names(shown) == ["line-2"])
            assert "filter 'smol-2 ok'" in text_of(shown) and "1 of 4 rows" in text_of(shown)
            await pilot.press("slash")
            await until(pilot, lambda: isinstance(shown.screen, Ask))
            shown.screen.query_one(Input).value = ""
            await pilot.press("enter")
            await until(pilot, lambda: len(lines(shown)) == 4)
            await pilot.press("S", "t", "plus", "minus", "minus")
            await until(pilot, lambda: "refresh 2.0 s   window 1h   sort device" in text_of(shown))
            await pilot.press(*["minus"] * 5)
            assert "refresh 60 s" in text_of(shown) or "refresh 1 min" in text_of(shown)

    run(test())


def test_an_incident_is_acknowledged_only_in_write_mode_and_with_a_reason(
    tmp_path: Path, state: Path
) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "#1: 20.0% of the requests failed, limit 5.0%" in text_of(shown))
            assert screen(shown).shell_command == f"edgekit monitor --once --window 15m --state {state}"
            await pilot.press("a")
            await until(pilot, lambda: "press w" in text_of(shown))
            assert shown.screen is shown.get_screen("incident")  # where its evidence is
            await pilot.press("4")
            await until(pilot, lambda: shown.screen is screen(shown))
            await write_mode(shown, pilot)
            await pilot.press("a")
            await until(pilot, lambda: isinstance(shown.screen, Ask))
            await pilot.press(*"on it", "enter")
            await until(pilot, lambda: Incidents(state).get(1).state == "ACKNOWLEDGED", 30)
            assert Incidents(state).timeline(1)[-1]["why"] == "on it"
            await pilot.press("4", "z")
            await until(pilot, lambda: isinstance(shown.screen, Ask))
            await pilot.press("enter")  # the hour that stands there
            await until(pilot, lambda: isinstance(shown.screen, Ask) and "for 1h: why" in text_of(shown))
            await pilot.press(*"known", "enter")
            await until(pilot, lambda: "silenced until" in text_of(shown), 30)
            await pilot.press("4")
            await until(pilot, lambda: "1 silenced" in text_of(shown), 30)
            assert "CRITICAL" in text_of(shown)  # a silenced incident stays to be seen

    run(test())


def test_a_device_known_by_its_url_says_that_changes_need_ssh(tmp_path: Path, line: Line) -> None:
    line.incidents[0] = [incident(7, "critical", kind="errors")]

    async def test() -> None:
        shown = app(tmp_path, "monitor", devices=line.devices)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "CRITICAL" in text_of(shown))
            await pilot.press("a")
            await until(pilot, lambda: "line-0=ssh:USER@HOST" in " ".join(text_of(shown).split()))

    run(test())


def test_enter_and_rollback_open_the_incident(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[tuple[str, dict[str, Any]]] = []

    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "#1" in text_of(shown))
            monkeypatch.setattr(shown, "go", lambda name, **what: went.append((name, what)))
            await pilot.press("enter", "R")
            await until(pilot, lambda: len(went) == 2)
            assert went[0] == ("incident", {"number": 1, "device": None, "then": ""})
            assert went[1] == ("incident", {"number": 1, "device": None, "then": "roll_back"})

    run(test())


def test_nothing_recorded_yet_says_what_records(tmp_path: Path) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(160, 50), notifications=True) as pilot:
            await until(
                pilot,
                lambda: "Nothing is recorded yet. Start `edgekit serve BUNDLE` to record." in text_of(shown),
            )
            await pilot.press("enter", "a", "z", "R", "S", "t", "down")
            assert "Traceback" not in text_of(shown) and not (tmp_path / "state").exists()

    run(test())


@pytest.mark.parametrize("name", ["telemetry.sqlite", "incidents.sqlite"])
def test_a_corrupt_store_is_a_sentence(tmp_path: Path, state: Path, name: str) -> None:
    (state / name).write_bytes(b"[bold]no database[/bold]" * 500)

    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "LOST" in text_of(shown))
            assert "never heard" in text_of(shown) and "Next:" in text_of(shown)
            assert " OK " not in text_of(shown) and "Traceback" not in text_of(shown)

    run(test())


def test_a_sentence_that_does_not_fit_is_seen_to_be_cut() -> None:
    command = (
        "line-1 #2: slow since 08:25. Next: go back: edgekit releases rollback --state demo/state --why 'x' "
        * 2
    )
    assert _fitted(command, 40).endswith("Press enter.")
    long = _fitted("a word and another " * 20, 40)
    assert (
        long.endswith(" …") and all(len(line) <= 40 for line in long.splitlines()) and long.count("\n") == 2
    )
    assert _fitted("all of it", 40) == "all of it"


def test_markup_of_strangers_is_shown_as_it_is(tmp_path: Path, line: Line) -> None:
    line.told[0]["release"] = "[red]x[/]\x1b[31m"
    line.incidents[0] = [incident(7, "warning", what="[bold] (warning)")]

    async def test() -> None:
        shown = app(tmp_path, "monitor", devices=line.devices[:1])
        async with shown.run_test(size=(160, 50), notifications=True) as pilot:
            await until(pilot, lambda: "[red]x" in text_of(shown) and "[bold] (warning)" in text_of(shown))
            await pilot.press("enter")
            await until(pilot, lambda: "ssh:USER@HOST" in text_of(shown))

    run(test())


def test_the_view_is_exported_as_it_is(tmp_path: Path, state: Path) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "#1" in text_of(shown))
            document = json.loads(json.dumps(screen(shown).document(), default=str))
            assert document["schema"] == "edgekit.monitor/1" and document["state"] == "CRITICAL"
            assert document["devices"][0]["releases"][0]["incidents"][0]["id"] == 1

    run(test())


def test_a_state_folder_that_goes_away_is_no_crash(tmp_path: Path, state: Path) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "#1" in text_of(shown))
            shutil.rmtree(state)
            await until(pilot, lambda: "its records are gone" in text_of(shown))
            assert "1 LOST" in text_of(shown) and "all well" not in text_of(shown)

    run(test())


def test_the_shells_line_of_an_address_is_quoted(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/status?a=1&b=$(id);`id`"

    async def test() -> None:
        shown = app(tmp_path, "monitor", devices=(Device("line-1", url),))
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "LOST" in text_of(shown))
            await until(pilot, lambda: screen(shown).shell_command.startswith("curl"))
            assert (
                shlex.split(screen(shown).shell_command) == ["curl", f"{url}&window=900"]
                and "'" in screen(shown).shell_command
            )

    run(test())


def test_a_change_by_ssh_says_who_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "id": 7, "rule": "r", "subject": "aaa", "kind": "errors", "severity": "critical", "action": "suggest",
        "release": "aaa", "what": "see [/tmp/x", "since": 1.0, "opened": 1.0, "state": "OPEN", "silenced_until": None,
        "resolved": None, "acted": False,
    }  # fmt: skip
    told = json.loads(status(OpenIncident(**values), state="CRITICAL", release="aaa"))
    (tmp_path / "answer").write_text(json.dumps(told))
    (tmp_path / "one").write_text(json.dumps({"incident": values}))
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "ssh"
    fake.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$*" >> {tmp_path}/sent\n'
        f'case "$*" in *"incident show"*) cat {tmp_path}/one;; *) cat {tmp_path}/answer;; esac\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("EDGEKIT_WHO", "anna")

    async def test() -> None:
        shown = app(tmp_path, "monitor", devices=(Device("roof", host="roof"),))
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "see [/tmp/x" in text_of(shown))
            await write_mode(shown, pilot)
            await pilot.press("a")
            await until(pilot, lambda: isinstance(shown.screen, Ask))
            await pilot.press(*"known", "enter")
            await until(pilot, lambda: "incident ack 7" in (tmp_path / "sent").read_text(), 30)
            sent = (tmp_path / "sent").read_text()
            assert "edgekit incident ack 7 --why known --who anna --json" in sent

    run(test())


def test_a_chart_of_what_is_no_number_is_drawn(tmp_path: Path, state: Path) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(160, 50), notifications=True) as pilot:
            await until(pilot, lambda: "#1" in text_of(shown))
            chart = screen(shown).query(Chart).first()
            bad = [math.inf, -math.inf, math.nan, 1.0]
            for kind in ("line", "scatter"):
                chart.draw([Series("", bad, [1.0] * 4, kind), Series("", [1.0] * 4, bad, kind)])  # type: ignore[arg-type]
                await pilot.pause()
                assert str(chart.render())
            chart.draw([Series("", bad[:3], bad[:3])], title="nothing of it")
            await until(pilot, lambda: "nothing of it" in str(chart.render()))

    run(test())
