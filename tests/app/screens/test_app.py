"""The app around its screens: keys, write mode, commands in processes of their own, small terminals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input, Static
from tui_support import app, run, text_of, until

from edgekit.app.screens.ascii import in_ascii
from edgekit.app.screens.base import NAMES, View
from edgekit.app.screens.chart import Chart, Series
from edgekit.app.screens.dialogs import Ask, Confirm
from edgekit.base.command import Command
from edgekit.tui import EdgekitApp

pressed: list[str] = []


class Plain(View):
    NAME = "monitor"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("x", "press", "Press")]

    def compose_view(self) -> ComposeResult:
        yield Static("a body")
        yield Chart(id="chart")

    def on_mount(self) -> None:
        self.shell_command, self.title_text = "edgekit monitor --once", "what is shown"

    def action_press(self) -> None:
        pressed.append("x")

    def document(self) -> Any:
        return {"shown": 1, "foreign": "\ud800"}


class Other(Plain):
    NAME = "incident"


@pytest.fixture(autouse=True)
def screens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setitem(EdgekitApp.SCREENS, name, Other if name == "incident" else Plain)


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_title_shell_command_and_keys_are_shown(tmp_path: Path, size: tuple[int, int]) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: "a body" in text_of(shown))
            lines = text_of(shown).splitlines()
            assert "1 build" in lines[0] and "READ-ONLY" in lines[0] and lines[0].endswith("? help")
            assert "what is shown" in lines[1]
            assert any(line.strip() == "$ edgekit monitor --once" for line in lines)
            await until(pilot, lambda: "q Quit" in text_of(shown))

    run(test())


def test_a_terminal_of_40x10_gets_a_sentence_and_takes_no_keys(tmp_path: Path) -> None:
    pressed.clear()

    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(40, 10), notifications=True) as pilot:
            await shown.screen.query_one("#body").mount(Input())
            await until(pilot, lambda: "40x10" in text_of(shown))
            assert "edgekit needs" in text_of(shown) and "a body" not in text_of(shown)
            assert "--state" in text_of(shown)
            await pilot.press("x", "enter", "tab", "y")
            assert not pressed and not shown.screen.query_one(Input).value and shown.focused is None
            await pilot.resize_terminal(80, 24)
            await until(pilot, lambda: "a body" in text_of(shown))
            shown.set_focus(None)
            await pilot.press("x")
            assert pressed == ["x"]
            shown.screen.query_one(Input).focus()
            await pilot.resize_terminal(40, 10)
            await until(pilot, lambda: "40x10" in text_of(shown))
            await pilot.press("z")
            await pilot.resize_terminal(80, 24)
            await until(pilot, lambda: isinstance(shown.focused, Input))
            await pilot.press("a")
            assert shown.screen.query_one(Input).value == "a"

    run(test())


def test_a_resize_is_not_lost_when_the_timer_for_it_is(tmp_path: Path) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "a body" in text_of(shown))
            whole, short = shown.set_timer, []

            def set_timer(delay: float, callback: Any = None, **more: Any) -> Any:
                return short.append(callback) if delay < 0.02 else whole(delay, callback, **more)

            shown.set_timer = set_timer  # type: ignore[method-assign]
            await pilot.resize_terminal(40, 10)
            await until(pilot, lambda: "40x10" in text_of(shown))
            assert short

    run(test())


def test_nothing_changes_before_w_and_what_fails_is_a_sentence(tmp_path: Path) -> None:
    command = Command(("incident", "ack", "7", "--why", "seen", "--state", str(tmp_path)))
    ended: list[Any] = []

    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            assert not shown.act(command, ended.append)
            await until(pilot, lambda: "press w" in text_of(shown))
            await pilot.press("w")
            await until(pilot, lambda: isinstance(shown.screen, Confirm))
            await pilot.press("enter")
            await until(pilot, lambda: "WRITE 10 min" in text_of(shown))
            assert shown.act(command, ended.append)
            await until(pilot, lambda: ended, 30)
            assert ended[0].code == 2 and ended[0].message and "Traceback" not in text_of(shown)
            await pilot.press("w")
            await until(pilot, lambda: "READ-ONLY" in text_of(shown))

    run(test())


def test_the_mode_and_help_are_never_cut(tmp_path: Path) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor", demo=True)
        async with shown.run_test(size=(60, 16)) as pilot:
            await until(pilot, lambda: "a body" in text_of(shown))
            first = text_of(shown).splitlines()[0]
            assert "4 monitor" in first and "READ-ONLY" in first and first.rstrip().endswith("? help")

    run(test())


def test_words_of_others_are_shown_as_they_are(tmp_path: Path) -> None:
    command = Command(("incident", "ack", "7", "--why", "[URGENT] see [/tmp/x", "--state", str(tmp_path)))

    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(160, 50), notifications=True) as pilot:
            shown._write_until = shown.now() + 60
            assert shown.act(command)
            await until(pilot, lambda: "[URGENT] see [/tmp/x" in text_of(shown))

    run(test())


def test_write_mode_may_be_on_when_the_app_ends(tmp_path: Path) -> None:
    """The timer that ends it may still tick when the screens are gone."""

    async def look() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test() as pilot:
            await pilot.pause()
            shown._write_until = shown.now() + 60
        assert not shown.screen_stack
        shown._end_write()

    run(look())


def test_a_screen_takes_the_place_of_the_one_before_and_of_its_questions(tmp_path: Path) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "a body" in text_of(shown))
            shown.push_screen(Confirm("Sure?"))
            await until(pilot, lambda: isinstance(shown.screen, Confirm))
            for name in ("incident", "monitor", "incident"):
                shown.go(name)
                await pilot.pause()
            await until(pilot, lambda: isinstance(shown.screen, Other))
            assert len(shown.screen_stack) == 2

    run(test())


def test_escape_goes_back_and_numbers_do_not_steal_from_an_input(tmp_path: Path) -> None:
    answers: list[str | None] = []

    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await pilot.press("5")
            await until(pilot, lambda: shown.screen.NAME == "incident")  # type: ignore[attr-defined]
            await pilot.press("escape")
            await until(pilot, lambda: shown.screen.NAME == "monitor")  # type: ignore[attr-defined]
            shown.push_screen(Ask("Why?"), answers.append)
            await until(pilot, lambda: isinstance(shown.screen, Ask))
            await pilot.press("q", "1", "w", "enter")
            await until(pilot, lambda: answers)
            assert answers == ["q1w"]

    run(test())


def test_a_typed_confirmation_takes_nothing_else(tmp_path: Path) -> None:
    answers: list[bool | None] = []

    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            shown.push_screen(Confirm("Roll back?", typed="line-3"), answers.append)
            await until(pilot, lambda: isinstance(shown.screen, Confirm))
            await pilot.press(*"line-4", "enter")
            await until(pilot, lambda: "does not match; nothing was changed" in text_of(shown))
            assert not answers
            shown.screen.query_one(Input).value = "line-3"
            await pilot.press("enter")
            await until(pilot, lambda: answers)
            assert answers == [True]

    run(test())


def test_help_lists_every_key_of_the_screen_and_runs_it(tmp_path: Path) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor")
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "a body" in text_of(shown))
            await pilot.press("question_mark")
            await until(pilot, lambda: "Write mode" in text_of(shown))
            await pilot.press(*"write mode")
            await until(pilot, lambda: "Incident: what" not in text_of(shown))
            await pilot.press("enter")
            await until(pilot, lambda: isinstance(shown.screen, Confirm))

    run(test())


def test_a_view_is_exported_and_never_over_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    async def test() -> None:
        shown = app(tmp_path, "monitor")
        monkeypatch.setattr(shown, "now", lambda: 1e9)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            await pilot.press("o")
            await until(pilot, lambda: list(tmp_path.glob("edgekit-monitor-*.json")))
            (written,) = tmp_path.glob("edgekit-monitor-*.json")
            assert json.loads(written.read_text()) == {"shown": 1, "foreign": "\ud800"}
            await pilot.press("o")
            await until(pilot, lambda: "could not be written" in text_of(shown))

    run(test())


@pytest.mark.parametrize("ascii", [False, True])
def test_all_keeps_to_the_signs_that_were_asked_for(tmp_path: Path, ascii: bool) -> None:
    async def test() -> None:
        shown = app(tmp_path, "monitor", ascii=ascii)
        async with shown.run_test(size=(80, 24), notifications=True) as pilot:
            chart = shown.screen.query_one(Chart)
            chart.draw([Series("loss", [1, 2, 3], [3.0, float("nan"), 1.0])], title="loss")
            await until(pilot, lambda: "loss" in text_of(shown))
            assert text_of(shown).isascii() == ascii
            shown.notify("\u2713 a note – 日本")
            shown.push_screen(Ask("Why… ?", "why", "weil ä"))
            await until(pilot, lambda: "a note" in text_of(shown) and "weil" in text_of(shown))
            assert text_of(shown).isascii() == ascii and ("weil ?" in text_of(shown)) == ascii

    run(test())


@given(st.text())
@example("❤️ ⚠️")
@example("👩\u200d👧 日本 ✗ …")
def test_what_is_drawn_in_ascii_is_as_wide_as_before(text: str) -> None:
    assert in_ascii(text).isascii() and cell_len(in_ascii(text)) == cell_len(text)
