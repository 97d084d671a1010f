"""What tests of the terminal app share: an app over temporary places, its screen as text, and waiting by condition."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from edgekit.app.views.settings import Settings
from edgekit.tui import EdgekitApp

SETTLES = 20  # looks, at most, until two in a row are the same


def app(tmp_path: Path, first: str = "build", **settings: Any) -> EdgekitApp:
    """The app, looking at empty places below `tmp_path` unless `settings` name others."""
    places = {name: tmp_path / name for name in ("cache_dir", "state", "bundles")}
    return EdgekitApp(Settings(**{**places, "every_s": 0.5, **settings}), first)


def text_of(app: EdgekitApp) -> str:
    """Everything on the screen, as plain lines."""
    return "\n".join(
        "".join(segment.text for segment in line).rstrip() for line in app.screen._compositor.render_strips()
    )


async def until(pilot: Any, condition: Callable[[], Any], seconds: float = 30) -> None:
    """Wait until `condition()` holds, and what is drawn together with it is drawn."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"it never came; the screen shows:\n{text_of(pilot.app)}"
        await pilot.pause(0.02)
    for _ in range(SETTLES):
        if not pilot.app.is_running or pilot.app.return_code is not None:
            return
        before = text_of(pilot.app)
        await pilot.pause(0.03)
        if text_of(pilot.app) == before:
            return


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an asynchronous test."""
    asyncio.run(test)
