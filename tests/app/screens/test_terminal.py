"""The app in a real terminal: keys sent and panes captured by tmux, its size changed, and its terminal closed."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from textual.drivers._writer_thread import WriterThread

from edgekit.app.screens.output import Output
from edgekit.tui import EdgekitApp

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
WAIT_S = 60


class Pane:
    """A program in a terminal of tmux."""

    def __init__(self, socket: Path, *arguments: str) -> None:
        self._socket = str(socket)
        command = [sys.executable, "-m", "edgekit.cli", *arguments]
        self._tmux("new-session", "-d", "-x", "80", "-y", "24", *command)
        self.process = psutil.Process(int(self._tmux("list-panes", "-F", "#{pane_pid}")))

    def press(self, *keys: str) -> None:
        """Send keys by tmux's names."""
        self._tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        """Change the terminal's size."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def text(self) -> str:
        """What is on the screen."""
        return self._tmux("capture-pane", "-p")

    def until(self, *words: str) -> str:
        """Wait until the screen shows all `words`, on one line or several."""
        self._wait(lambda: all(word in self.text() for word in words), str(words))
        return self.text()

    def gone(self, words: str) -> None:
        """Wait until the screen shows `words` no more."""
        self._wait(lambda: words not in self.text(), f"the end of {words}")

    def close(self) -> None:
        """Close the terminal, as one closes a window."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self._tmux("kill-server")

    def ended(self) -> None:
        """Wait until the program has ended."""
        self._wait(lambda: not self.process.is_running(), "its end")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < end, f"{what} never came:\n{self.text()}"
            time.sleep(0.1)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", self._socket, "-f", os.devnull, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}).stdout  # fmt: skip


@pytest.fixture
def pane(tmp_path: Path) -> Iterator[Pane]:
    """The app on its recorded data."""
    opened = Pane(tmp_path / "tmux", "tui", "monitor", "--demo")
    yield opened
    opened.close()


def test_keys_take_one_through_every_screen_and_out(pane: Pane) -> None:
    pane.until("4 devices", "WARNING", "READ-ONLY", "$ ")
    pane.press("3")
    pane.until("3 results", "gates passed", "$ edgekit verify")
    pane.press("5")
    pane.until("5 incident", "Drift", "$ edgekit incident list")
    pane.press("Enter")
    pane.until("INCIDENT", "Release changes in the day before", "$ edgekit incident show")
    pane.press("a")
    pane.until("press w")
    pane.press("2")
    pane.until("2 run", "tune", "DONE")
    pane.press("1")
    pane.until("1/5 model")
    pane.press("Escape")
    pane.until("2 run", "tune", "DONE")
    pane.press("?")
    pane.until("Search for commands")
    pane.press("Escape")
    pane.gone("Search for commands")
    pane.press("4")
    pane.until("4 devices")
    pane.press("q")
    pane.ended()


def test_a_terminal_may_shrink_and_grow_and_be_closed(pane: Pane) -> None:
    pane.until("4 devices")
    pane.resize(40, 10)
    pane.until("40x10", "edgekit needs")
    pane.resize(200, 50)
    pane.until("4 devices", "first token, p95 ms", "p95 in window")
    pane.close()
    pane.ended()


class Closed(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_output_to_a_closed_terminal_blocks_nothing() -> None:
    writer = WriterThread(cast("Any", Output(Closed())))
    writer.start()
    written = threading.Thread(target=lambda: [writer.write("x") for _ in range(200)], daemon=True)
    written.start()
    written.join(30)
    assert not written.is_alive(), "the app waits for a queue that nothing empties"
    assert EdgekitApp().get_driver_class().__name__ == "Outliving"
    writer.stop()
