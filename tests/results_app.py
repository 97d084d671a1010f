"""The app on its results screen, for tests: open it, read what it tells, answer what it asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textual.widgets import Input, Static
from tui_support import app, text_of, until

from edgekit.app.screens.results import ResultsScreen
from edgekit.tui import EdgekitApp


def opened(tmp_path: Path, **settings: Any) -> EdgekitApp:
    return app(tmp_path, "results", **settings)


def screen(found: EdgekitApp) -> ResultsScreen:
    shown = found.get_screen("results")
    assert isinstance(shown, ResultsScreen)
    return shown


async def read(pilot: Any) -> ResultsScreen:
    """The screen, once its bundle is read."""
    await until(
        pilot, lambda: all(words in text_of(pilot.app) for words in ("gates passed", "   base ", "v Picture"))
    )
    return screen(pilot.app)


def told(found: EdgekitApp) -> str:
    """What the notifications say."""
    return "\n".join(each.message for each in found._notifications)


def steps(found: EdgekitApp) -> str:
    """How the promotion goes, as it is drawn."""
    return " ".join(str(screen(found).query_one("#progress", Static).render()).split())


async def writing(pilot: Any) -> None:
    await pilot.press("w")
    await until(pilot, lambda: len(pilot.app.screen_stack) > 2)
    await pilot.press("enter")
    await until(pilot, lambda: pilot.app.writing)


async def typed(pilot: Any, text: str) -> None:
    """Answer the question that is asked."""
    await until(pilot, lambda: isinstance(pilot.app.focused, Input))
    pilot.app.focused.value = text
    await pilot.press("enter")
