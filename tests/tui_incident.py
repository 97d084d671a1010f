"""What tests of the incident screen share: opening it, its text on one line, and answering what it asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from textual.widgets import Input
from tui_support import app, text_of, until

from edgekit.app.screens.dialogs import Ask, Confirm
from edgekit.app.screens.incident import IncidentScreen
from edgekit.tui import EdgekitApp


def opened(tmp_path: Path, number: int | None = None, **settings: Any) -> EdgekitApp:
    shown = app(tmp_path, "incident", **settings)
    if number is not None:
        shown._what = {"number": number}
    return shown


def screen(shown: EdgekitApp) -> IncidentScreen:
    found = shown.get_screen("incident")
    assert isinstance(found, IncidentScreen)
    return found


def flat(shown: EdgekitApp) -> str:
    return " ".join(text_of(shown).replace("│", " ").split())


async def write_mode(shown: EdgekitApp, pilot: Any) -> None:
    await pilot.press("w")
    await until(pilot, lambda: isinstance(shown.screen, Confirm))
    await pilot.press("enter")
    await until(pilot, lambda: shown.writing and isinstance(shown.screen, IncidentScreen))


async def answer(shown: EdgekitApp, pilot: Any, words: str | None, dialog: type = Ask) -> None:
    await until(pilot, lambda: isinstance(shown.screen, dialog) and bool(shown.screen.query(Input)))
    if words is not None:
        shown.screen.query_one(Input).value = words
    await pilot.press("enter")
