"""Going back from the incident screen: the typed word, the health watch and its verdict, and refusals."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest
from field.releases import bundles
from field_state import BadHour, answers, versions
from textual.widgets import Input, Static
from tui_incident import answer, flat, opened, screen, write_mode
from tui_support import run, text_of, until

from edgekit.app.screens.dialogs import Ask, Confirm
from edgekit.app.screens.health_watch import HealthWatch
from edgekit.field.fleet import recovery
from edgekit.field.fleet.device import Device
from edgekit.field.fleet.recovery import Recovery
from edgekit.field.incidents.incidents import Incidents
from edgekit.field.releases import Releases
from edgekit.field.telemetry.store import Store


def test_nothing_is_rolled_back_by_another_word_or_esc(tmp_path: Path, state: Path, hour: BadHour) -> None:
    old, new = hour.old, hour.new

    async def test() -> None:
        shown = opened(tmp_path, 1)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "OPEN" in text_of(shown))
            await write_mode(shown, pilot)
            await pilot.press("R")
            await until(pilot, lambda: isinstance(shown.screen, Ask), 30)
            await pilot.press("escape")
            await until(pilot, lambda: shown.screen is screen(shown))
            await pilot.press("R")
            await until(pilot, lambda: isinstance(shown.screen, Ask), 30)
            assert shown.screen.query_one(Input).value == "incident 1: failing requests"
            await answer(shown, pilot, None)
            await until(pilot, lambda: isinstance(shown.screen, Confirm))
            words = flat(shown)
            assert f"from {new}" in words and f"to {old}" in words and f"Type {old}" in words
            assert f"$ edgekit releases rollback --release {new} --why 'incident" in words
            await answer(shown, pilot, new, Confirm)
            await pilot.pause(0.3)
            assert isinstance(shown.screen, Confirm)
            await pilot.press("escape")
            await until(pilot, lambda: shown.screen is screen(shown))
            assert Releases(state / "releases").current().name == new  # type: ignore[union-attr]

    run(test())


@pytest.mark.parametrize("alive", [True, False])
def test_a_rollback_is_watched_and_ends_with_a_verdict(
    tmp_path: Path, state: Path, hour: BadHour, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    old = hour.old
    monkeypatch.setattr(recovery, "WATCH_S", 5.0)
    incidents = Incidents(state)
    for incident in incidents.find() if alive else ():
        incidents.close(incident.id, who="watcher", why="it is no longer in use")
    store = Store(state / "telemetry.sqlite", every_s=3600)

    def serve() -> None:
        if not alive:
            return
        now = time.time()
        answers(store, old, now, count=1)
        for minute in (
            now - 60,
            now - 120,
        ):  # it has answered for a while, so that it is what was heard of late
            answers(store, old, minute, count=1)
        store.heartbeat(now)
        store.flush()

    if not alive:
        with sqlite3.connect(store.path) as db:
            db.execute("update alive set time = time - 100")

    async def test() -> None:
        shown = opened(tmp_path, 1 if not alive else None)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "incident" in text_of(shown).splitlines()[1].lower())
            await write_mode(shown, pilot)
            await pilot.press("R")
            await until(pilot, lambda: isinstance(shown.screen, Ask), 30)
            await answer(shown, pilot, "it fails")
            await answer(shown, pilot, old, Confirm)
            await until(pilot, lambda: isinstance(shown.screen, HealthWatch), 30)
            assert Releases(state / "releases").current().name == old  # type: ignore[union-attr]

            def watched() -> bool:
                serve()
                return f"HEALTH WATCH of {old}" in text_of(shown) and "s left" in text_of(shown)

            await until(pilot, watched)

            def ended() -> bool:
                serve()
                return "HEALTHY:" in text_of(shown) or "STILL BAD:" in text_of(shown)

            await until(pilot, ended)
            said = str(shown.screen.query_one("#verdict", Static).render())
            if alive:
                assert f"HEALTHY: {old} answered" in said
            else:
                assert "STILL BAD: no server is running" in said and "edgekit serve --state" in said
            await pilot.press("enter")
            await until(pilot, lambda: shown.screen is screen(shown))
            assert ("HEALTHY" if alive else "STILL BAD") in text_of(shown)  # it stays to be read

    run(test())
    store.close()


def test_what_another_one_rolled_back_meanwhile_is_not_rolled_back_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    one, two, three = versions(state, ["one", "two", "three"], time.time() - 600)
    releases = Releases(state / "releases")

    async def test() -> None:
        shown = opened(tmp_path)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "No open incidents" in text_of(shown))
            await write_mode(shown, pilot)
            await pilot.press("R")
            await answer(shown, pilot, "it is slow")
            await until(pilot, lambda: isinstance(shown.screen, Confirm) and f"from {three}" in flat(shown))
            releases.rollback(why="a rule was first", release=three)
            await answer(shown, pilot, two, Confirm)
            await until(pilot, lambda: f"{three} is no longer in use; in use is {two}" in flat(shown), 30)
            assert releases.current() == releases.get(two).path and releases.get(one).place == "previous"
            assert not isinstance(shown.screen, HealthWatch)

    run(test())


def test_the_end_does_not_wait_for_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let, looking = threading.Event(), threading.Event()
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    before = set(threading.enumerate())

    def read_health(*what: object) -> recovery.DeviceHealth:
        looking.set()
        let.wait(10)
        return recovery.DeviceHealth("old", 1.0)

    monkeypatch.setattr(recovery, "read_health", read_health)

    async def test() -> None:
        shown = opened(tmp_path)
        async with shown.run_test(size=(80, 24)) as pilot:
            await until(pilot, lambda: "state folder" in flat(shown))
            shown.push_screen(HealthWatch(Recovery(Device("here", state=tmp_path), "old", time.time())))
            await until(pilot, looking.is_set)

    began = time.monotonic()
    run(test())
    assert time.monotonic() - began < 8
    let.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert not raised


def test_without_a_release_before_nothing_is_asked(tmp_path: Path) -> None:
    state = tmp_path / "state"
    releases = Releases(state / "releases")
    only = releases.import_(bundles.write(tmp_path / "one", "one"), health=bundles.fit).name

    async def test() -> None:
        shown = opened(tmp_path)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "No open incidents" in text_of(shown))
            await until(
                pilot, lambda: "never heard from" in flat(shown)
            )  # nobody looks: that is not the same as all being well
            await write_mode(shown, pilot)
            await pilot.press("R")
            await until(pilot, lambda: "No release is in use" in flat(shown), 30)
            releases.promote(only, health=bundles.fit)
            releases.mark_good()
            await pilot.press("R")
            await until(pilot, lambda: f"No earlier release than {only} is kept" in flat(shown), 30)
            assert shown.screen is screen(shown)

    run(test())
