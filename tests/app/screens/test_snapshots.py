"""What people see, word for word: each screen of `--demo` at a fixed time, held against tests/app/screens/__snapshots__.

After a change that is meant: python -m pytest tests/app/screens/test_snapshots.py --snapshot-update, and read the difference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion
from tui_support import run, text_of, until

from edgekit.app.views import demo
from edgekit.app.views.settings import Settings
from edgekit.tui import EdgekitApp

NOW = 1_790_000_000.0


class At(EdgekitApp):
    """The app at a time that stands still."""

    def now(self) -> float:
        return NOW


@pytest.fixture
def day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """The recorded build and day, ending at `NOW`, in UTC, on a device called `line-1`, at a path that is no test's."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr("socket.gethostname", lambda: "line-1")
    monkeypatch.chdir(tmp_path)
    yield demo.unpack(Path("demo"), NOW)
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("size", [(80, 24), (160, 50)], ids=["80x24", "160x50"])
@pytest.mark.parametrize(
    ("screen", "what", "words"),
    [
        ("run", {}, "PASSED"),
        ("results", {}, "where it fails"),
        ("monitor", {}, "drift alarms."),
        ("incident", {"number": 2}, "Next steps"),
    ],
    ids=["run", "results", "monitor", "incident"],
)
def test_a_screen(
    day: Settings,
    snapshot: SnapshotAssertion,
    screen: str,
    what: dict[str, Any],
    words: str,
    size: tuple[int, int],
) -> None:
    async def test() -> None:
        shown = At(day, screen, **what)
        async with shown.run_test(size=size) as pilot:
            await until(pilot, lambda: words in text_of(shown))
            seen = ""
            while seen != text_of(shown):  # plots come a moment after the words
                seen = text_of(shown)
                await pilot.pause(1.5)
            assert seen == snapshot

    run(test())
