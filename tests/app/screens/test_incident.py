"""The incident screen as an operator uses it: looking, acknowledging, silencing, and damaged stores."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from field_state import BadHour
from tui_incident import answer, flat, opened, screen, write_mode
from tui_support import run, text_of, until

from edgekit.app.screens.dialogs import Ask
from edgekit.app.screens.incident_parts import Lines, Steps, caption, timeline
from edgekit.app.views.evidence import figures
from edgekit.app.views.incident_reader import Found, Reader, Wanted
from edgekit.base.command import Command, Outcome
from edgekit.field.fleet.device import Device
from edgekit.field.fleet.incidents import read_one
from edgekit.field.incidents.incidents import Incidents

REASON = "--see [/tmp/x [URGENT] [b]the fan[/b]"


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_from_the_list_to_one_incident_and_back(
    tmp_path: Path, state: Path, hour: BadHour, size: tuple[int, int]
) -> None:
    async def test() -> None:
        shown = opened(tmp_path)
        async with shown.run_test(size=size) as pilot:
            await until(pilot, lambda: "Failing requests: 33.3%" in flat(shown))
            listed = text_of(shown)
            assert listed.index("CRITICAL") < listed.index("WARNING") and "edgekit incident list" in listed
            await pilot.press("down", "enter")
            await until(pilot, lambda: "Slow first token" in text_of(shown).splitlines()[1])
            await until(pilot, lambda: "limit 5" in text_of(shown))
            words = flat(shown)
            for told in (
                "! WARNING OPEN since", "Time to first token is 8.0 s at the 95th percentile, limit 5.0 s",
                f"release {hour.new}", "| opened", "o previous release", "Release changes in the day before", "likely cause: 1 min 00 s",
                "Next steps", "1 If it began soon after a release change, roll back", "4 If the load is expected",
                "a Ack", "z Silence", "c Close", "R Roll back", "q Quit", "$ edgekit incident show",
            ):  # fmt: skip
                assert told in words, told
            assert ("Timeline" in words) == (size[0] >= 100)
            assert ("$ edgekit releases rollback" in words) == (
                size[0] >= 100
            )  # each command where there is room
            await pilot.press("escape")
            await until(pilot, lambda: "CRITICAL" in text_of(shown))
            assert screen(shown).query_one("#list", Lines).highlighted == 1  # where it was

    run(test())


def test_the_steps_are_chosen_by_number_and_their_command_is_copied(tmp_path: Path, state: Path) -> None:
    async def test() -> None:
        shown = opened(tmp_path, 1)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: screen(shown).query_one(Steps).option_count > 2)
            await pilot.press("n", "1")
            await until(pilot, lambda: shown.clipboard.startswith("edgekit releases rollback"))
            await until(pilot, lambda: "$ edgekit releases rollback" in text_of(shown))
            assert shown.screen is screen(shown)
            await pilot.press("9")
            await pilot.pause()
            assert shown.screen is screen(shown)

    run(test())


def test_read_only_changes_nothing_and_write_mode_takes_a_reason(tmp_path: Path, state: Path) -> None:
    async def test() -> None:
        shown = opened(tmp_path, 1)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "OPEN" in text_of(shown))
            for key in ("a", "z", "c", "R"):
                await pilot.press(key)
                await until(pilot, lambda: "press w" in text_of(shown))
                assert shown.screen is screen(shown)
            await write_mode(shown, pilot)
            await pilot.press("a")
            await answer(shown, pilot, "")
            await until(pilot, lambda: "needs a reason" in flat(shown))
            assert Incidents(state).get(1).state == "OPEN"
            await pilot.press("a")
            await answer(shown, pilot, REASON)
            await until(pilot, lambda: "see [/tmp/x [URGENT]" in flat(shown))  # the toast
            await until(pilot, lambda: "ACKNOWLEDGED" in text_of(shown), 30)
            assert Incidents(state).timeline(1)[-1]["why"] == REASON

    run(test())


def test_silence_asks_how_long_and_close_ends_it(tmp_path: Path, state: Path) -> None:
    async def test() -> None:
        shown = opened(tmp_path, 1)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "OPEN" in text_of(shown))
            await write_mode(shown, pilot)
            await pilot.press("z")
            await answer(shown, pilot, "soon")
            await until(pilot, lambda: "is not a duration" in flat(shown))
            await pilot.press("z")
            await answer(shown, pilot, None)  # the hour that stands there
            await until(pilot, lambda: "for 1h" in flat(shown))
            await answer(shown, pilot, "lunch")
            await until(pilot, lambda: "OPEN, silenced until" in flat(shown), 30)
            until_s = Incidents(state).get(1).silenced_until
            assert until_s is not None and 3500 < until_s - time.time() < 3601
            await pilot.press("c")
            await answer(shown, pilot, "it was a test")
            await until(pilot, lambda: "RESOLVED" in text_of(shown), 30)
            await pilot.press("c")
            await until(pilot, lambda: "is already resolved; nothing changed" in flat(shown))

    run(test())


def test_damage_and_absence_are_sentences(tmp_path: Path, state: Path) -> None:
    async def test() -> None:
        shown = opened(tmp_path, 77)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "There is no incident 77" in flat(shown))
            shown.go("incident", number=1)
            await until(pilot, lambda: "33.3% of the requests fail" in flat(shown))
            log = state / "audit.jsonl"
            log.write_text(log.read_text().replace("watcher", "nobody", 1))
            await until(pilot, lambda: "The audit log was changed" in flat(shown))
            (state / "incidents.sqlite").write_bytes(b"no database at all")
            await until(pilot, lambda: "is damaged" in flat(shown))
            assert "33.3% of the requests fail" in flat(shown)  # what was known stays
            shutil.rmtree(state)
            await until(pilot, lambda: "There is no state folder" in flat(shown))
            assert "Traceback" not in text_of(shown)

    run(test())


def test_texts_of_a_store_are_drawn_as_they_are(tmp_path: Path, state: Path) -> None:
    evil = "[red]gone[/red] [@click=app.quit]x[/] \x1b[2J\u202e end [/nothing]"
    with sqlite3.connect(state / "incidents.sqlite") as db:
        db.execute("update incidents set what = ?, release = ?", (evil, evil))
        db.execute("update changes set who = ?, why = ?", (evil, evil))
    db.close()

    async def test() -> None:
        shown = opened(tmp_path)
        async with shown.run_test(size=(160, 50)) as pilot:
            await until(pilot, lambda: "[red]gone[/red] [@click=app.quit]x[/]" in text_of(shown))
            await pilot.press("enter")
            await until(pilot, lambda: "Timeline" in text_of(shown) and "[/nothing]" in text_of(shown))
            assert "\x1b" not in text_of(shown) and "\u202e" not in text_of(shown)

    run(test())


def test_plain_signs_alone_with_ascii(tmp_path: Path, state: Path) -> None:
    async def test() -> None:
        shown = opened(tmp_path, ascii=True)
        async with shown.run_test(size=(160, 50)) as pilot:
            await until(pilot, lambda: "A CRITICAL" in text_of(shown))
            await pilot.press("down", "down", "enter")
            await until(pilot, lambda: "Too hot" in text_of(shown) and "opened" in text_of(shown))
            assert text_of(shown).isascii() and "80 'C" in flat(shown), text_of(shown)

    run(test())


def test_a_device_with_metrics_alone_says_so(tmp_path: Path) -> None:
    async def test() -> None:
        shown = opened(tmp_path)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "state folder" in flat(shown))
            shown.go("incident", device=Device("line-3", url="http://127.0.0.1:9/metrics"))
            await until(pilot, lambda: "line-3 is LOST" in flat(shown))
            assert "line-3=ssh:USER@HOST" in flat(shown)
            await pilot.press("R")
            await until(pilot, lambda: "or roll back on the device" in flat(shown))

    run(test())


def test_those_that_are_over_are_shown_on_demand(tmp_path: Path, state: Path) -> None:
    for incident in Incidents(state).find():
        Incidents(state).close(incident.id, who="anna", why="done")

    async def test() -> None:
        shown = opened(tmp_path)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "No open incidents" in text_of(shown))
            await pilot.press("A")
            await until(pilot, lambda: text_of(shown).count("RESOLVED") == 3)
            assert "incident list --all" in text_of(shown)
            document = screen(shown).document()
            assert [one["state"] for one in document["incidents"]] == ["RESOLVED"] * 3
            await pilot.press("A")
            await until(pilot, lambda: "No open incidents" in text_of(shown))

    run(test())


@pytest.mark.parametrize("value", ["9e999", "1e300"])
def test_times_that_are_none_are_a_sentence(tmp_path: Path, state: Path, value: str) -> None:
    with sqlite3.connect(state / "incidents.sqlite") as db:
        db.execute(f"update incidents set since = {value}, opened = {value} where id = 1")
    db.close()

    async def test() -> None:
        shown = opened(tmp_path)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "is not a finite number" in flat(shown))
            shown.go("incident", number=1)
            await until(pilot, lambda: "INCIDENT 1 on this device The incidents" in flat(shown))
            assert "is not a finite number" in flat(shown)
            shown.go("incident", number=2)
            await until(pilot, lambda: "OPEN since" in flat(shown))

    run(test())


class Slow(Reader):
    """Reads incident 1 no sooner than it is let, or after ten seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.let, self.reading = threading.Event(), threading.Event()

    def read(self, wanted: Wanted, now: float) -> Found:
        if wanted.number == 1:
            self.reading.set()
            self.let.wait(10)
        return super().read(wanted, now)


def test_the_end_does_not_wait_for_a_device_and_its_late_answer_harms_nothing(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, raised = Slow(), []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    before = set(threading.enumerate())

    async def test() -> None:
        shown = opened(tmp_path, 1)
        async with shown.run_test(size=(80, 24)) as pilot:
            screen(shown)._reader = slow
            await until(pilot, slow.reading.is_set)

    began = time.monotonic()
    run(test())
    assert time.monotonic() - began < 8
    slow.let.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
    assert not raised


@pytest.mark.parametrize("left", ["escape", "1"])
def test_the_way_back_is_not_asked_for_on_another_screen_or_incident(
    tmp_path: Path, state: Path, left: str
) -> None:
    slow = Slow()

    async def test() -> None:
        shown = opened(tmp_path)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "CRITICAL" in text_of(shown))
            await write_mode(shown, pilot)
            page = screen(shown)
            page._reader = slow
            asked: list[object] = []
            page.action_roll_back = lambda: asked.append(page.subject)  # type: ignore[method-assign]
            shown.go("incident", number=1, then="roll_back")
            await until(pilot, slow.reading.is_set)
            await pilot.press(left)
            await until(pilot, lambda: page.number is None or shown.screen is not page)
            slow.let.set()
            shown.go("incident", number=2 if left == "escape" else 1)
            await until(pilot, lambda: "OPEN since" in flat(shown))
            assert not asked
            shown.go("incident", number=2, then="roll_back")
            await until(pilot, lambda: asked == [(2, None)])

    run(test())


def test_a_question_that_comes_late_is_not_put_over_another_incident(tmp_path: Path, state: Path) -> None:
    async def test() -> None:
        shown = opened(tmp_path, 1)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "OPEN since" in flat(shown))
            await write_mode(shown, pilot)
            later: list[Callable[[Outcome], None]] = []
            shown.ask = lambda command, done: later.append(done)  # type: ignore[method-assign]
            await pilot.press("R")
            await until(pilot, lambda: later)
            shown.go("incident", number=2)
            await until(pilot, lambda: "INCIDENT 2" in flat(shown) and "OPEN since" in flat(shown))
            listed = [{"name": place, "place": place, "size_mib": 1.0} for place in ("current", "previous")]
            later[0](Outcome(Command(("x",)), 0, listed))
            await pilot.pause()
            assert shown.screen is screen(shown)
            await pilot.press("R")
            await until(pilot, lambda: len(later) == 2)
            later[1](Outcome(Command(("x",)), 0, listed))
            await until(pilot, lambda: isinstance(shown.screen, Ask))

    run(test())


def test_what_was_measured_is_told_once(state: Path) -> None:
    shown, now = read_one(Device("here", state=state), 1), time.time()
    words = figures(shown, "not here")
    assert words.figures and "Measured when it was opened" in timeline(shown, None, now).plain
    assert "Measured" not in timeline(shown, words, now).plain
    assert all(figure in caption(words, now).plain for figure in words.figures)
