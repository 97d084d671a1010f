"""The answers of every variant to one prompt, side by side, with what changed marked inside the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.events import Resize
from textual.message import Message
from textual.widgets import Static

from edgekit.app.screens.dialogs import Ask
from edgekit.app.views import samples as view
from edgekit.app.views.samples import BEFORE, SIGNS, Sample, Samples
from edgekit.app.views.symbols import Symbols

STYLES = {"same": "", "gone": "bold red", "new": "bold green"}
SIDE_BY_SIDE = 100  # columns from which the answers stand beside each other


class SamplesPane(Vertical):
    """One sample at a time; those in which a file answers otherwise than the tuned model come first."""

    DEFAULT_CSS = """
    SamplesPane > Static { height: auto; padding: 0 1; }
    SamplesPane > VerticalScroll { height: 1fr; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "step(1)", "Next", id="samples-next", tooltip="The next sample"),
        Binding("p", "step(-1)", "Previous", id="samples-previous", tooltip="The previous sample"),
        Binding("a", "all", "All", id="samples-all", tooltip="All samples, or only those that differ"),
        Binding("slash", "filter", "Filter", id="samples-filter", key_display="/",
                tooltip="Match the prompt, the answers or the id; or: changed, better, worse"),
        Binding("escape,s", "close", "Variants", id="samples-close", key_display="esc", tooltip="Back to the table"),
    ]  # fmt: skip

    class Closed(Message):
        """The person goes back to the table."""

    class Turned(Message):
        """Another sample is shown."""

    def __init__(self, symbols: Symbols, **more: Any) -> None:
        super().__init__(**more)
        self._symbols = symbols
        self.samples = Samples()
        self.bundle = Path()
        self.all = False
        self.filter = ""
        self.index = 0
        self.shown: list[Sample] = []
        """The samples that are stepped through."""

    def compose(self) -> ComposeResult:
        """The counts, and the sample below."""
        yield Static(id="counts", markup=False)
        with VerticalScroll(id="sample"):
            yield Static(id="answers", markup=False)

    def put(self, samples: Samples, bundle: Path) -> None:
        """Show the samples of a bundle."""
        if bundle != self.bundle:
            self.shown, self.filter, self.all = [], "", False
        self.samples, self.bundle = samples, bundle
        self._choose(self._here)

    def _choose(self, here: str = "") -> None:
        """Find the samples to step through, and go on at the one called `here`."""
        self.shown = self.samples.shown(all_=self.all, filter_=self.filter)
        self.index = next((at for at, sample in enumerate(self.shown) if sample.id == here), 0)
        self.draw()

    @property
    def _here(self) -> str:
        return self.shown[self.index].id if self.index < len(self.shown) else ""

    @property
    def shell_command(self) -> str:
        """The command that tells of the same change: of the first file whose answer differs here."""
        if BEFORE not in self.samples.variants or not self.samples.held:
            return f"edgekit verify {self.bundle}"
        shown = self.shown
        kinds = shown[self.index].kinds if self.index < len(shown) else {}
        other = next((name for name, kind in kinds.items() if kind != "same"), self.samples.held[0])
        return view.compare_command(self.bundle, BEFORE, other).text

    def draw(self) -> None:
        """Draw the counts and the sample."""
        shown = self.shown
        self.index = max(0, min(self.index, len(shown) - 1))
        self.query_one("#counts", Static).update(self._counts(shown))
        answers = self.query_one("#answers", Static)
        answers.update(self._sample(shown[self.index]) if shown else self._nothing())
        self.query_one("#sample").scroll_home(animate=False)
        self.post_message(self.Turned())

    def action_step(self, by: int) -> None:
        """The next or the one before, around the ends."""
        if shown := self.shown:
            self.index = (self.index + by) % len(shown)
            self.draw()

    def action_all(self) -> None:
        """All, or only those that differ."""
        self.all = not self.all
        self._choose(self._here)

    def action_filter(self) -> None:
        """Ask for words."""

        def answered(words: str | None) -> None:
            if words is not None:
                self.filter = words
                self._choose()

        text = "Show samples with these words (of the prompt, an answer, the id, or: changed, better, worse); none shows all:"  # fmt: skip
        self.app.push_screen(Ask(text, "words", self.filter), answered)

    def action_close(self) -> None:
        """Back to the table."""
        self.post_message(self.Closed())

    def on_resize(self, event: Resize) -> None:
        """Beside or below each other, as there is room."""
        if self.samples.variants:
            self.draw()

    def _counts(self, shown: list[Sample]) -> Text:
        lines = [Text(f"{self._symbols.warning} {fault}", "bold") for fault in self.samples.faults]
        for name in self.samples.held:
            counts = self.samples.counts(name)
            said = "  ".join(f"{count} {kind}" for kind, count in counts.items())
            lines.append(Text(f"{name:<8} {said}  against {BEFORE}"))
        what = "" if self.all else " that differ"
        if self.filter:
            what += f" with '{self.filter}'"
        at = f"{self.index + 1} of {len(shown)}" if shown else "none"
        others = "a shows those that differ" if self.all else f"a shows all {len(self.samples.samples)}"
        lines.append(Text(f"{self._symbols.here} sample {at}{what}; {others}", "bold"))
        return Text("\n").join(lines)

    def _nothing(self) -> Text:
        if not self.samples.samples:
            return Text("There are no samples to show.")
        if self.filter:
            return Text(f"No sample has '{self.filter}'. Press / and leave it empty to see the others.")
        if not self.samples.held or BEFORE not in self.samples.variants:
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
        if self.size.width < SIDE_BY_SIDE:
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
        sign, word = (self._symbols.ok, "right") if answer.correct else (self._symbols.failed, "wrong")
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
