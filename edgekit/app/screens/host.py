"""What the screens need of the app: its settings, the write mode, and the running of commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from textual.app import App

from edgekit.app.screens.threads import in_thread
from edgekit.app.views.settings import Settings
from edgekit.base.command import Command, Outcome

READ_ONLY = "Read-only: press w to allow changes."


class Host(App[None]):
    """An app that runs commands for its screens; those that change something only in write mode."""

    def __init__(self, settings: Settings | None = None) -> None:
        super().__init__()
        self.settings = settings or Settings()
        self._write_until = 0.0
        self._asked: set[Command] = set()

    def now(self) -> float:
        """Unix seconds."""
        return time.time()

    @property
    def writing(self) -> bool:
        """Whether changes are allowed."""
        return self.now() < self._write_until

    def may_change(self) -> bool:
        """Whether changes are allowed; shows a notice when they are not."""
        if not self.writing:
            self.notify(READ_ONLY, markup=False, severity="warning")
        return self.writing

    @property
    def mode_words(self) -> str:
        """The mode, in words."""
        left = self._write_until - self.now()
        return f"WRITE {max(1, round(left / 60))} min" if left > 0 else "READ-ONLY"

    def go(self, name: str, **what: Any) -> None:
        """Show the screen `name` and, with `what`, one subject of it."""
        raise NotImplementedError

    def act(self, command: Command, done: Callable[[Outcome], None] | None = None, *, what: str = "") -> bool:
        """Run a command that changes something, then report the result; returns False, with a notice, while read-only."""
        if not self.may_change():
            return False

        def told(outcome: Outcome) -> None:
            if outcome.code == 0:
                self.notify(what or outcome.command.text, markup=False, title="Done")
            else:
                text = "\n".join([outcome.message, *outcome.faults[:5], outcome.hint]).strip()
                self.notify(text, markup=False, title="Failed", severity="error", timeout=15)
            if done is not None:
                done(outcome)

        self.notify(f"$ {command.text}", markup=False, timeout=3)
        in_thread(self, command.run, told)
        return True

    def ask(self, command: Command, done: Callable[[Outcome], None]) -> None:
        """Run a command that changes nothing; `done` gets its outcome."""
        self._asked.add(command)

        def told(outcome: Outcome) -> None:
            self._asked.discard(command)
            done(outcome)

        in_thread(self, command.run, told)

    def on_unmount(self) -> None:
        """Stop the commands that change nothing: nobody waits for their answers."""
        for command in self._asked:
            command.stop()
