"""Putting what the results screen shows to use: import, promote, serve; each is its shell command."""

from __future__ import annotations

import asyncio

from rich.text import Text
from textual import work
from textual.widgets import Static

from edgekit.app.screens.base import View
from edgekit.app.screens.dialogs import Ask, Confirm
from edgekit.app.screens.threads import in_thread, tell
from edgekit.app.views import deploy
from edgekit.app.views.launch import outcome_of
from edgekit.app.views.results import Results
from edgekit.app.views.symbols import STYLES, Symbols
from edgekit.base.command import Command, Outcome
from edgekit.base.errors import reason
from edgekit.base.texts import plain

ROWS = "JSONL rows with right answers to compare it on? Without a file its golden answers are used, often too few."


class Deploying(View):
    """A screen with `results` to put to use, and a line `#progress` that tells how that goes."""

    results: Results | None = None
    pending: Command | None = None
    """The command that is asked about or runs."""
    progress: tuple[tuple[str, str], ...] = ()
    """A state and a sentence for each step."""

    def draw_shell_command(self) -> None:
        """Show the command that fits the focus, or the pending one."""
        raise NotImplementedError

    def draw_progress(self) -> None:
        """Show how the promotion goes; nothing before one began."""
        line = self.query_one("#progress", Static)
        line.display = bool(self.progress)
        steps = [
            Text(f"{Symbols.of(state)} {state} {said}", STYLES.get(state, "bold"))
            for state, said in self.progress
        ]
        line.update(Text("\n").join(steps))

    @work
    async def action_promote(self) -> None:
        """Ask why, have the name typed, then import and promote."""
        found, state = self.results, self.edgekit.settings.state
        if said := deploy.refusal(found):
            self.notify(said, title="Refused", severity="error", timeout=15, markup=False)
            return
        if not self.edgekit.may_change():
            return
        assert found is not None
        importing = deploy.import_command(found.bundle, state)
        self.pend(importing)
        why = await self.app.push_screen_wait(
            Ask("Why is it promoted? The reason goes into the log of releases.", "why")
        )
        data = None if why is None else await self.app.push_screen_wait(Ask(ROWS, "rows.jsonl, or nothing"))
        if why is None or data is None:
            self.pend(None)
            return
        text = (
            f"Import {found.name} on this device ({state}) and put it on trial. Its golden answers are asked again "
            "and it is compared with the version in use, which stays if this one is worse.\n\n"
            f"$ {importing.text}\n$ {deploy.promote_command('NAME', why, data, state).text}"
        )
        if not await self.app.push_screen_wait(Confirm(text, found.name)):
            self.pend(None)
            return
        self._say(("RUNNING", "import: its files and golden answers are checked"), ("WAITING", "promote"))
        outcome = await self._act(importing, what=f"{found.bundle.name} is imported")
        if outcome is None:
            self.pend(None)
            self._say()
            return
        document = outcome.document if isinstance(outcome.document, dict) else {}
        name = str(document.get("name") or "")
        if outcome.code or not name:
            self._refused("import", outcome)
        else:
            imported = ("DONE", f"import: {plain(name)} is on this device")
            await self._promote(imported, deploy.promote_command(name, why, data, state))

    async def _promote(self, imported: tuple[str, str], command: Command) -> None:
        """Promote what was imported; where only the proof is missing, ask whether to go on without it."""
        self.pend(command)
        self._say(imported, ("RUNNING", "promote: health check, then comparison with the version in use"))
        outcome = await self._act(command)
        if outcome is None:
            self._say(imported, ("STOPPED", "promote: write mode has ended; press w, then P again, or type the line below"))  # fmt: skip
        elif outcome.code == 0:
            self.pend(None)
            self._say(imported, ("DONE", f"promote: {deploy.promoted_words(outcome.document)} S serves it."))
        else:
            self._refused("promote", outcome, imported)
            if self.is_active and (without := deploy.unproven(command, outcome)):
                text = (
                    f"{plain(outcome.message)}\n\nYou can promote it without this proof; the log of releases records that. "
                    f"Better: press P again and name rows with right answers.\n\n$ {without.text}"
                )
                if await self.app.push_screen_wait(Confirm(text, "unproven")):
                    await self._promote(imported, without)

    async def _act(self, command: Command, what: str = "") -> Outcome | None:
        """Run a command that changes something and wait for its end; None while read-only."""
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def told(outcome: Outcome) -> None:
            if not ended.done():  # as it is once the app is left
                ended.set_result(outcome)

        return await ended if self.edgekit.act(command, told, what=what) else None

    def pend(self, command: Command | None) -> None:
        """Show `command` as the one that is asked about or runs."""
        self.pending = command
        self.draw_shell_command()

    def _say(self, *steps: tuple[str, str]) -> None:
        self.progress = steps
        self.draw_progress()

    def _refused(self, step: str, outcome: Outcome, *before: tuple[str, str]) -> None:
        told = [outcome.message or "It gave no answer.", *outcome.faults, outcome.hint]
        self.pend(None)
        self._say(*before, ("FAILED", f"{step}: {plain(' '.join(filter(None, told)))}"))

    @work
    async def action_serve(self) -> None:
        """Ask for a port and start a server that outlives the app."""
        if not self.edgekit.may_change():
            return
        question = Ask("Port to serve the release in use on (this machine only):", "8080")
        typed = await self.app.push_screen_wait(question)
        if typed is None:
            return
        if (port := deploy.port_of(typed)) is None:
            said = f"'{typed}' is no port: give a number from 1 to 65535."
            self.notify(said, severity="error", markup=False)
            return
        self.pend(deploy.serve_command(self.edgekit.settings.state, port))
        self._serve(port)

    def _serve(self, port: int) -> None:
        app, state = self.app, self.edgekit.settings.state
        command, log = deploy.serve_command(state, port), state / "serve.log"

        def serve() -> str:
            try:
                pid = command.start(log)
            except OSError as error:
                return f"{command.text} could not be started: {reason(error)}."
            tell(
                self,
                self._serving,
                f"Starting on http://127.0.0.1:{port} (process {pid}); its log is {log}.",
            )
            return outcome_of(pid, log, gone=lambda: not app.is_running)

        in_thread(self, serve, self._ended)

    def _serving(self, said: str) -> None:
        """Tell where it will answer; the monitor shows when it does."""
        self.pend(None)
        self.app.notify(said, markup=False, title="Serve", timeout=10)
        if self.is_active:
            self.edgekit.go("monitor")

    def _ended(self, why: str) -> None:
        self.pend(None)
        if why:
            said = f"The server does not run. {why} Its log is {self.edgekit.settings.state / 'serve.log'}."
            self.app.notify(said, markup=False, title="Serve", severity="error", timeout=20)
