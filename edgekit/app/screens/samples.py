"""The answers of every variant to one prompt, side by side, with what changed marked inside the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import Resize
from textual.widgets import Static

from edgekit.app.screens.base import WIDE, View
from edgekit.app.screens.dialogs import Ask
from edgekit.app.views import samples as view
from edgekit.app.views.samples import BEFORE, SIGNS, Sample, Samples
from edgekit.app.views.symbols import Symbols

STYLES = {"same": "", "gone": "bold red", "new": "bold green"}


class SamplesScreen(View):
    """One sample at a time; those in which a file answers otherwise than the tuned model come first."""

    NAME = "results"
    DEFAULT_CSS = """
    SamplesScreen #counts { height: auto; padding: 0 1; }
    SamplesScreen #sample { height: 1fr; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "step(1)", "Next", id="samples-next", tooltip="The next sample"),
        Binding("p", "step(-1)", "Previous", id="samples-previous", tooltip="The previous sample"),
        Binding("a", "all", "All", id="samples-all", tooltip="All samples, or only those that differ"),
        Binding("slash", "filter", "Filter", id="samples-filter", key_display="/",
                tooltip="Match the prompt, the answers or the id; or: changed, better, worse"),
        Binding("escape,s", "dismiss", "Variants", id="samples-close", key_display="esc", tooltip="Back to the table"),
    ]  # fmt: skip

    def __init__(self, title: str, samples: Samples, bundle: Path) -> None:
        super().__init__()
        self._title, self._samples, self._bundle = title, samples, bundle
        self._all = False
        self._filter = ""
        self._index = 0
        self._shown = samples.shown()

    def compose_view(self) -> ComposeResult:
        """The counts, and the sample below."""
        with Vertical():
            yield Static(id="counts", markup=False)
            with VerticalScroll(id="sample"):
                yield Static(id="answers", markup=False)

    def on_mount(self) -> None:
        """Show the first sample."""
        self.title_text = self._title
        self._draw()

    def document(self) -> Any:
        """The samples that are stepped through."""
        return view.document(self._samples, self._shown)

    def _command(self) -> str:
        """The command that tells of the same change: of the first file whose answer differs here."""
        if BEFORE not in self._samples.variants or not self._samples.held:
            return f"edgekit verify {self._bundle}"
        kinds = self._shown[self._index].kinds if self._shown else {}
        other = next((name for name, kind in kinds.items() if kind != "same"), self._samples.held[0])
        return view.compare_command(self._bundle, BEFORE, other).text

    def _draw(self) -> None:
        shown = self._shown
        self.query_one("#counts", Static).update(self._counts())
        answers = self.query_one("#answers", Static)
        answers.update(self._sample(shown[self._index]) if shown else self._nothing())
        self.query_one("#sample").scroll_home(animate=False)
        self.shell_command = self._command()

    def _choose(self, here: str = "") -> None:
        """Find the samples to step through, and go on at the one called `here`."""
        self._shown = self._samples.shown(all_=self._all, filter_=self._filter)
        self._index = next((at for at, sample in enumerate(self._shown) if sample.id == here), 0)
        self._draw()

    def action_step(self, by: int) -> None:
        """The next or the one before, around the ends."""
        if self._shown:
            self._index = (self._index + by) % len(self._shown)
            self._draw()

    def action_all(self) -> None:
        """All, or only those that differ."""
        self._all = not self._all
        self._choose(self._shown[self._index].id if self._shown else "")

    @work
    async def action_filter(self) -> None:
        """Ask for words."""
        text = "Show samples with these words (of the prompt, an answer, the id, or: changed, better, worse); none shows all:"  # fmt: skip
        words = await self.app.push_screen_wait(Ask(text, "words", self._filter))
        if words is not None:
            self._filter = words
            self._choose()

    def on_resize(self, event: Resize) -> None:
        """Beside or below each other, as there is room."""
        self._draw()

    def _counts(self) -> Text:
        lines = [Text(f"{Symbols.warning} {fault}", "bold") for fault in self._samples.faults]
        for name in self._samples.held:
            counts = self._samples.counts(name)
            said = "  ".join(f"{count} {kind}" for kind, count in counts.items())
            lines.append(Text(f"{name:<8} {said}  against {BEFORE}"))
        what = "" if self._all else " that differ"
        if self._filter:
            what += f" with '{self._filter}'"
        at = f"{self._index + 1} of {len(self._shown)}" if self._shown else "none"
        others = "a shows those that differ" if self._all else f"a shows all {len(self._samples.samples)}"
        lines.append(Text(f"{Symbols.here} sample {at}{what}; {others}", "bold"))
        return Text("\n").join(lines)

    def _nothing(self) -> Text:
        if not self._samples.samples:
            return Text("There are no samples to show.")
        if self._filter:
            return Text(f"No sample has '{self._filter}'. Press / and leave it empty to see the others.")
        if not self._samples.held or BEFORE not in self._samples.variants:
            return Text("There are no two variants to compare. Press a to see all samples.")
        return Text("Every file answers every prompt as the tuned model does. Press a to see all samples.")

    def _sample(self, sample: Sample) -> RenderableType:
        """The prompt, what was expected, and the answers: beside each other where there is room."""
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1, overflow="fold")
        head = Text("  ".join(filter(None, [sample.id, sample.label])), "bold")
        grid.add_row(Text("sample", "dim"), head)
        grid.add_row(Text("asked", "dim"), Text(sample.asked))
        grid.add_row(Text("expected", "dim"), Text(sample.expected))
        names = list(sample.answers)
        if self.size.width < WIDE:
            for name in names:
                grid.add_row("", "")
                grid.add_row(Text(name, "bold"), self._verdict(sample, name))
                grid.add_row("", self._answer(sample, name))
            return grid
        beside = Table(box=None, padding=(0, 1), expand=True, pad_edge=False)
        for name in names:
            title = Text.assemble((name, "bold"), "  ", self._verdict(sample, name))
            beside.add_column(title, ratio=1, overflow="fold")
        beside.add_row(*(self._answer(sample, name) for name in names))
        return Group(grid, "", beside)

    def _verdict(self, sample: Sample, name: str) -> Text:
        answer, kind = sample.answers[name], sample.kinds.get(name)
        sign, word = (Symbols.ok, "right") if answer.correct else (Symbols.failed, "wrong")
        return Text(f"{sign} {word}{f', {kind}' if kind else ''}", "" if answer.correct else "bold")

    def _answer(self, sample: Sample, name: str) -> Text:
        """An answer, with signs around what changed where it is held against the tuned model's."""
        text = sample.answers[name].text
        if name not in sample.kinds:
            return Text(text or "(empty)")
        if sample.kinds[name] == "same":
            return Text(f"as {BEFORE}: {text}" if text else f"as {BEFORE}: (empty)", "dim")
        found = Text()
        for kind, piece in view.pieces(sample.answers[BEFORE].text, text):
            found.append(piece.join(SIGNS[kind]), STYLES[kind])
        return found
