"""Screen 2: the build under way in this cache, whoever started it, or how the last one ended."""

from __future__ import annotations

import os
import shlex
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.events import Resize
from textual.widgets import Static

from edgekit.app.screens.base import View
from edgekit.app.screens.chart import Chart, Series
from edgekit.app.screens.dialogs import Ask, Confirm
from edgekit.app.screens.run_parts import Parts
from edgekit.app.views.run import LogLine, RunReader, RunView, matching
from edgekit.app.views.symbols import STYLES, Symbols
from edgekit.app.views.wizard import Choice
from edgekit.base.errors import EdgekitError
from edgekit.build import runs

PLOTS = ("loss", "drift")


class RunScreen(View):
    """Stages, curves, log and memory of a build; `c` stops it, and keeps what is finished."""

    NAME = "run"
    DEFAULT_CSS = """
    RunScreen #verdict { height: auto; max-height: 5; padding: 0 1; }
    RunScreen #upper { height: auto; layout: horizontal; }
    RunScreen #stages { padding: 0 1; height: auto; width: 1fr; }
    RunScreen #plot { display: none; height: 100%; width: 1fr; padding: 0 1; }
    RunScreen #drift { display: none; padding: 0 1; height: 100%; }
    RunScreen #chart { height: 100%; }
    RunScreen.-drift #drift { display: block; }
    RunScreen.-drift #chart { display: none; }
    RunScreen.-wide #plot { display: block; }
    RunScreen.-wide #stages { width: auto; }
    RunScreen.-plot #plot { display: block; }
    RunScreen.-plot.-narrow #stages { display: none; }
    RunScreen #now { height: 1; padding: 0 1; text-style: bold; }
    RunScreen #head { height: 1; padding: 0 1; color: $text-muted; }
    RunScreen #log { height: 1fr; padding: 0 1; }
    RunScreen #lines { text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "cancel", "Cancel", id="run-cancel", tooltip="Stop the build; finished stages are kept"),
        Binding("enter", "results", "Results", id="run-results", key_display="enter", tooltip="Show the results of this build"),
        Binding("v", "plot", "Plot", id="run-plot", tooltip="Switch between loss and drift by stage"),
        Binding("f", "follow", "Follow", id="run-follow", tooltip="Follow the end of the log"),
        Binding("slash", "filter", "Filter", id="run-filter", key_display="/", tooltip="Show only matching lines"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._view = RunView()
        self._asked: dict[int, float] = {}  # when each process was asked to stop
        self._filter = ""
        self._plot = 0
        self._held: list[LogLine] = []  # lines of the log that hold the filter's text
        self._logged: tuple[object, ...] = ()

    def compose_view(self) -> ComposeResult:
        """Verdict, stages beside plots, the stage under way, and the log."""
        with Vertical():
            yield Static(id="verdict", markup=False)
            with Horizontal(id="upper"):
                yield Static(id="stages", markup=False)
                with Vertical(id="plot"):
                    yield Chart(id="chart")
                    yield Static(id="drift", markup=False)
            yield Static(id="now", markup=False)
            yield Static(id="head", markup=False)
            with VerticalScroll(id="log"):
                yield Static(id="lines", markup=False)

    def on_mount(self) -> None:
        """Begin to look."""
        reader = RunReader(self.edgekit.settings.cache_dir)
        log = self.query_one("#log", VerticalScroll)
        log.anchor()
        log.focus()
        self.watch(log, "scroll_y", self._draw_head, init=False)
        self.every_read(lambda: reader.read(self.edgekit.now()), self._looked)

    def on_resize(self, event: Resize) -> None:
        """Lay the stages out anew."""
        self._draw()

    def document(self) -> Any:
        """The run as JSON."""
        return None if self._view.state == "NONE" else self._view.document()

    def _looked(self, view: RunView) -> None:
        before, self._view = self._view.state, view
        self._draw()
        if view.state != before:
            self.refresh_bindings()

    def offers(self, action: str) -> bool:
        """Keys that mean something now."""
        if action == "cancel":
            return self._view.state == "RUNNING" and not self.edgekit.settings.demo
        if action == "results":
            return self._view.state in ("PASSED", "FAILED")
        return True

    @work
    async def action_cancel(self) -> None:
        """Ask, then stop the run as ctrl-c in its shell does."""
        run = self._view.run
        if run is None or self._view.state != "RUNNING" or run.pid == os.getpid():
            return
        if not self._view.ours and not self.edgekit.writing:
            self.notify(
                "This build was started elsewhere. Press w first to allow changes.", severity="warning"
            )
            return
        text = (
            f"Stop the build of {run.model} for {run.target}? It keeps finished stages, and the same command goes on "
            f"from there.\n\n$ {self.shell_command}"
        )
        if not await self.app.push_screen_wait(Confirm(text)):
            return
        try:
            runs.interrupt(run)
        except EdgekitError as error:
            self.complain(error)
        else:
            self._asked[run.pid] = self.edgekit.now()

    def action_results(self) -> None:
        """What it built."""
        if self._view.run is not None:
            self.edgekit.go("results", bundle=self._view.run.out)

    def action_plot(self) -> None:
        """Loss or drift beside the stages; without room for both, the stages again after them."""
        choices = len(PLOTS) + (0 if self._parts.wide else 1)
        self._plot = (self._plot + 1) % choices
        self._draw()

    def action_follow(self) -> None:
        """Follow the log's end again, after scrolling up."""
        self.query_one("#log").scroll_end(animate=False)

    @work
    async def action_filter(self) -> None:
        """Ask for a text, and show the lines that hold it; an empty one shows all."""
        question = Ask("Show log lines that contain:", "all lines", self._filter)
        text = await self.app.push_screen_wait(question)
        if text is not None:
            self._filter = text
            self._draw()

    @property
    def _parts(self) -> Parts:
        run, size = self._view.run, self.size
        asked = None if run is None else self._asked.get(run.pid)
        return Parts(self._view, size.width, size.height, self.edgekit.now(), asked)

    def _draw(self) -> None:
        """Draw the run as it was last seen."""
        if not self.is_mounted:
            return
        parts = self._parts
        self.title_text, self.shell_command = parts.title(), self._shell_command()
        choices = PLOTS if parts.wide else (None, *PLOTS)
        shown = choices[self._plot % len(choices)]
        self.set_class(shown == "drift", "-drift")
        self.set_class(shown is not None, "-plot")
        now = Text(parts.now(), no_wrap=True, overflow="ellipsis")
        self.query_one("#stages", Static).update(parts.stages())
        for name, text in (("verdict", parts.verdict()), ("now", now)):
            line = self.query_one(f"#{name}", Static)
            line.update(text)
            line.display = bool(text)
        if shown == "loss":
            self._draw_loss()
        elif shown == "drift":
            self.query_one("#drift", Static).update(parts.drift())
        self._draw_log()
        self._draw_head()
        self.query_one("#upper").styles.height = parts.upper_height(shown is not None)
        self.query_one("#stages").styles.width = parts.stages_width if parts.wide else "1fr"

    def _draw_log(self) -> None:
        """Draw the log when it is another: it may have thousands of lines."""
        logged = (self._view.log[-1:], len(self._view.log), self._filter)
        if logged != self._logged:
            self._logged, now = logged, self.edgekit.now()
            self._held = matching(self._view.log, self._filter, now)
            lines = (Text(line.words(now), STYLES.get(line.word, "")) for line in self._held)
            self.query_one("#lines", Static).update(Text("\n").join(lines))

    def _shell_command(self) -> str:
        view, settings = self._view, self.edgekit.settings
        build = (Choice() if settings.demo else Choice(cache_dir=settings.cache_dir)).build.text
        if settings.demo:
            return build
        if view.run is not None and view.state == "RUNNING":
            return f"kill -INT {view.run.pid}"
        return f"cat {shlex.quote(str(settings.cache_dir / runs.FILE))}" if view.run is not None else build

    def _draw_loss(self) -> None:
        view, chart = self._view, self.query_one(Chart)
        series = []
        if view.loss.xs:
            series.append(Series("loss", view.loss.xs, view.loss.ys))
        if view.validation.xs:
            series.append(Series("validation loss", view.validation.xs, view.validation.ys, "scatter", "o"))
        title = "loss by step, nats" if series else "no loss yet: the tune stage reports it"
        chart.draw(series, title=title)

    def _draw_head(self, *_: object) -> None:
        """The line above the log."""
        view = self._view
        follow = "following" if self.query_one("#log").is_vertical_scroll_end else "not following"
        held = f"{len(self._held)} of {len(view.log)} lines hold '{self._filter}'" if self._filter else ""
        words = "  ".join(part for part in (f"{Symbols.line * 2} log", follow, held) if part)
        head = Text(f"{words} {Symbols.line * self.size.width}", no_wrap=True, overflow="crop")
        self.query_one("#head", Static).update(head)
