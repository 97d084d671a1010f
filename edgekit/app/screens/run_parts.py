"""A run in words and signs: the pieces that screen 2 is put together from, for one width and height."""

from __future__ import annotations

from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from edgekit.app.screens.base import WIDE
from edgekit.app.views.run import RunView
from edgekit.app.views.stages import Stage
from edgekit.app.views.symbols import STYLES, Symbols
from edgekit.base.clock import clock, span

NAME, WORD = 14, 7  # cells of a stage's name and word
CELL = 39  # of a stage, so that two stand beside each other in 80 columns
STAGES_WIDE = 54
LEAST_LOG = 12  # lines left for log and notices before stages stand in two columns


@dataclass(frozen=True)
class Parts:
    """The pieces of a view; `asked` is when its process was asked to stop, if it was, `at` is now."""

    view: RunView
    width: int
    height: int
    at: float
    asked: float | None = None

    @property
    def wide(self) -> bool:
        """Whether plots stand beside the stages."""
        return self.width >= WIDE

    def title(self) -> str:
        """What is built, for how long already, in how much memory, and its loss."""
        view, run = self.view, self.view.run
        if run is None:
            return "no build yet" if view.state == "NONE" else "a log without a record"
        between = " for " if self.wide else " "
        parts = [f"{run.model}{between}{run.target}" if run.model else "unreadable record"]
        if run.started:
            total = "" if view.total_s is None else f" of ~{_about(view.total_s)}"
            parts.append(f"{span(view.spent_s)}{total}")
        if view.rss_mib is not None and view.available_mib is not None:
            parts.append(
                f"rss {view.rss_mib / 1024:.1f}/{(view.rss_mib + view.available_mib) / 1024:.1f} GiB"
            )
        if view.loss.ys:
            parts.append(f"loss {view.loss.ys[-1]:.2g}")
        return "  ".join(parts)

    def verdict(self) -> Text:
        """The state in a word, what it means, and what went wrong on the way, most important first."""
        view = self.view
        lines = []
        if view.state != "RUNNING":
            word = "" if view.state == "NONE" else f"{Symbols.of(view.state)} {view.state}  "
            line = Text(word, STYLES.get(view.state, "bold")).append(view.sentence, "not bold")
            if view.state in ("PASSED", "FAILED"):
                line.append(" Enter shows the results.", "bold")
            elif view.state in ("NONE", "STOPPED"):
                line.append(" Press 1 to build. A build started in a shell also appears here.", "bold")
            lines.append(line)
        elif self.asked is not None:
            at = clock(self.asked, self.at)
            lines.append(
                Text(
                    f"{Symbols.stopped} STOPPING  Requested at {at}; the build stops after the current step.",
                    "bold yellow",
                )
            )
        room = 3 if self.wide else 2
        for gate in view.failed[:room]:
            text = f"{Symbols.failed} FAILED  {gate.name} {gate.value:.4g}, limit {gate.limit:.4g}. {gate.detail}"
            lines.append(Text(text, "red"))
        if len(view.failed) > room:
            lines[-1].append(f"  and {len(view.failed) - room} more gates: / FAILED")
        told = [
            (alert.level, f"{alert.message} {alert.hint}") for alert in view.alerts if alert.level != "info"
        ]
        for level, message in [*told[-1:], *(("warning", notice) for notice in view.notices[:2])]:
            lines.append(Text(f"{Symbols.warning} {level.upper()}  {message}".rstrip(), "yellow"))
        return Text("\n").join(lines)

    def columns(self) -> int:
        """In how many columns the stages stand."""
        if not self.wide:
            return 2
        return 1 if len(self.view.stages) + LEAST_LOG <= self.height - 4 else 2

    @property
    def stages_width(self) -> int:
        """Cells that the stages take beside a plot."""
        return STAGES_WIDE if self.columns() == 1 else 2 * (CELL + 1) + 2

    def rows(self) -> int:
        """Lines that the stages take."""
        return -(-len(self.view.stages) // self.columns())

    def upper_height(self, plotted: bool) -> int:
        """Lines of stages and plot: as many as the stages need, and more for a plot where there is room."""
        rows = self.rows()
        return max(rows, min(12 if self.wide else 10, self.height - LEAST_LOG)) if plotted else rows

    def stages(self) -> Text:
        """The stages, down and then right."""
        stages, rows = self.view.stages, self.rows()
        width = CELL if self.columns() == 2 else STAGES_WIDE - 2
        if not self.wide:
            width = min(CELL, (self.width - 3) // 2)
        lines = []
        for row in range(rows):
            line = Text(no_wrap=True)
            for stage in stages[row::rows]:
                text, style = self._stage(stage, width)
                line.append(set_cell_size(text, width), style)
                line.append(" ")
            lines.append(line)
        return Text("\n").join(lines)

    def _stage(self, stage: Stage, width: int) -> tuple[str, str]:
        text = f"{Symbols.of(stage.state)} {set_cell_size(stage.name, NAME)} {stage.state:<{WORD}} "
        if stage.state == "RUNNING" and stage.fraction is not None:
            bar = max(4, min(24, width - cell_len(text) - 6))
            text += f"{Symbols.bar(stage.fraction, bar)} {stage.fraction:4.0%}"
        elif stage.failed:
            text += f"{len(stage.failed)} gate{'s' if len(stage.failed) > 1 else ''}"
        elif stage.seconds is not None and stage.state != "KEPT":
            text += span(stage.seconds)
        return text, STYLES.get(stage.state, "")

    def now(self) -> str:
        """The stage under way in words."""
        view, stage = self.view, self.view.current
        if view.state != "RUNNING":
            return ""
        if stage is None:
            waiting = any(one.state == "WAITING" for one in view.stages)
            return "Between stages." if waiting else "All stages are done; the bundle is being written."
        left = f"{span(stage.left_s)} left" if stage.left_s else ""
        so_far = f"for {span(stage.seconds)}" if stage.seconds is not None else ""
        parts = (f"{Symbols.running} {stage.name}", stage.counted, left, stage.note, so_far)
        return "  ".join(part for part in parts if part)

    def drift(self) -> Text:
        """The drift of each stage as a share of its limit."""
        view = self.view
        if not view.drift:
            return Text("No drift measured yet: the verify stage measures it.", "dim")
        width = (self.width - self.stages_width if self.wide else self.width) - 4
        lines = [Text("mean KL divergence in nats, and its share of what is allowed", "bold")]
        for point in view.drift:
            limit = f"of {point.limit:.3g}" if point.limit is not None else ""
            text = f"{set_cell_size(point.stage, NAME)} {set_cell_size(_check(point.check), 12)} {point.value:<8.3g} {limit:<8}"
            if point.limit:
                share = point.value / point.limit
                over = share > 1
                text += f" {Symbols.bar(share, max(4, min(30, width - cell_len(text) - 17)))} {share:5.0%}"
                text += f" {Symbols.failed} FAILED" if over else ""
                lines.append(Text(text, "red" if over else "", no_wrap=True))
            else:
                lines.append(Text(text, no_wrap=True))
        return Text("\n", no_wrap=True, overflow="ellipsis").join(lines)


def _about(seconds: float) -> str:
    """A guessed span: no seconds in it where there are minutes."""
    return span(seconds if seconds < 60 else round(seconds / 60) * 60).replace(" min 00 s", " min")


def _check(name: str) -> str:
    """What a drift was measured on, short."""
    if "text_" in name:
        return "plain text"
    return {"source": "as it came", "merge": "merging"}.get(name.partition(".")[0], "answers")
