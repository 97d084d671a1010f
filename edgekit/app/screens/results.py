"""Screen 3: what was built: variants, pictures, samples; compare two, promote, serve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.content import Content
from textual.events import Resize
from textual.widgets import ContentSwitcher, DataTable, Static

from edgekit.app.screens.base import WIDE
from edgekit.app.screens.bundles import Beside, Bundles
from edgekit.app.screens.deploy import Deploying
from edgekit.app.screens.samples import SamplesScreen
from edgekit.app.screens.threads import from_thread
from edgekit.app.views import allocation, bundles, differences, pictures, results
from edgekit.app.views import samples as samples_view
from edgekit.app.views.bundles import REPORT
from edgekit.app.views.lines import styled
from edgekit.app.views.results import Results, Row
from edgekit.app.views.samples import Samples
from edgekit.app.views.symbols import Symbols
from edgekit.app.views.wizard import Choice
from edgekit.base.command import Command
from edgekit.base.errors import CorruptError
from edgekit.base.texts import plain

DEMO = Choice().build.text
OVERVIEW = {"picture", "diff", "mark", "samples"}


@dataclass(frozen=True)
class Seen:
    """What was read of a bundle, at the stamp of its report; or the fault that kept it from being read."""

    bundle: Path | None = None
    stamp: tuple[int, ...] = (0,)
    fault: str = ""
    results: Results | None = None
    samples: Samples = field(default_factory=Samples)


class Pictures(VerticalScroll):
    """Size and drift as bars, types as cells, drawn again at each width that the layout gives them."""

    results: Results | None = None

    def compose(self) -> ComposeResult:
        """The lines."""
        yield Static(id="drawn", markup=False)

    def draw(self, found: Results) -> None:
        """Draw the figures of a bundle."""
        self.results = found
        room = max(30, self.size.width - 4)
        lines = [*pictures.size_lines(found, room), ("fact", ""), *pictures.waterfall_lines(found, room)]
        drawn = [Content.from_rich_text(styled(lines))]
        drawn += [Content.assemble(*parts) for parts in allocation.lines(found, room)]
        self.query_one("#drawn", Static).update(Content("\n").join(drawn))

    def on_resize(self, event: Resize) -> None:
        """Bars of another length fit now."""
        if self.results is not None:
            self.draw(self.results)


class ResultsScreen(Deploying):
    """The newest bundle, or the one that `show` names."""

    NAME = "results"
    DEFAULT_CSS = """
    ResultsScreen #pages { height: 1fr; }
    ResultsScreen #progress { height: auto; padding: 0 1; display: none; }
    ResultsScreen #split { layout: vertical; height: 1fr; }
    ResultsScreen.-wide #split { layout: horizontal; }
    ResultsScreen #left { width: 1fr; height: 1fr; }
    ResultsScreen #variants { height: auto; max-height: 12; }
    ResultsScreen #more { height: 1fr; padding: 0 1; }
    ResultsScreen #detail { height: auto; }
    ResultsScreen #pictures { width: 1fr; height: 1fr; padding: 0 1; display: none; }
    ResultsScreen.-wide #pictures { width: 36%; min-width: 42; border-left: solid $panel; }
    ResultsScreen.-drawn #pictures { display: block; }
    ResultsScreen.-drawn.-narrow #left { height: auto; }
    ResultsScreen.-drawn.-narrow #more { display: none; }
    ResultsScreen #nothing { padding: 1 2; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("v", "picture", "Picture", id="results-picture", tooltip="Show or hide size against drift, drift by stage, and the bits of each tensor"),
        Binding("space", "mark", "Mark", id="results-mark", tooltip="Mark a variant to compare", show=False),
        Binding("d", "diff", "Diff", id="results-diff", tooltip="Compare the two marked variants"),
        Binding("s", "samples", "Samples", id="results-samples", tooltip="Compare answers side by side"),
        Binding("b", "bundles", "Bundles", id="results-bundles", tooltip="Choose a bundle, or compare two"),
        Binding("P", "promote", "Promote", id="results-promote", tooltip="Import the bundle on this device and start its trial"),
        Binding("S", "serve", "Serve", id="results-serve", tooltip="Serve the release in use"),
        Binding("h", "page", "Report page", id="results-page", tooltip="Show the path of report.html", show=False),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._samples = Samples()
        self._bundle: Path | None = None
        self._stamp: tuple[int, ...] = ()
        self._marked: list[str] = []
        self._cursor = ""
        self._look: Callable[[], None] = lambda: None  # before the screen is there

    def compose_view(self) -> ComposeResult:
        """A table beside a picture, or samples, or why there is neither."""
        with ContentSwitcher(initial="nothing", id="pages"):
            yield Static("Looking for bundles ...", id="nothing", markup=False)
            with Vertical(id="overview"):
                yield Static(id="progress", markup=False)
                with Container(id="split"):
                    with Vertical(id="left"):
                        yield DataTable(id="variants", cursor_type="row", zebra_stripes=False)
                        with VerticalScroll(id="more"):
                            yield Static(id="detail", markup=False)
                    yield Pictures(id="pictures")

    def on_mount(self) -> None:
        """Look for the newest bundle, and look again when its report changes."""
        self.title_text = "no bundle yet"
        self.set_class(self.app.size.width >= WIDE, "-drawn")
        self._look = self.every_read(self._read, self._show)

    # Reading

    def show(self, bundle: Path | None = None, **what: Any) -> None:
        """Turn to a bundle."""
        if bundle is not None and Path(bundle) != self._bundle:
            self._bundle, self._stamp, self._marked, self.progress = Path(bundle), (), [], ()
        self._look()

    def _read(self) -> Seen | None:
        """In a thread: read the bundle when there is another, or when its report is not the one that is shown."""
        folder, asked, before = self.edgekit.settings.bundles, self._bundle, self._stamp
        bundle = asked or bundles.newest(folder)
        if bundle is None:
            return Seen(fault=f"There is no bundle in {folder} yet.\n\nBuild one: press 1, or type\n  {DEMO}")
        try:
            found = (bundle / REPORT).stat()
            stamp: tuple[int, ...] = (found.st_mtime_ns, found.st_size, found.st_ino)
        except OSError:
            stamp = (1,)
        if stamp == before and bundle == asked:
            return None
        try:
            return Seen(bundle, stamp, results=results.load(bundle), samples=samples_view.read(bundle))
        except CorruptError as error:
            said = f"{Symbols.warning} {error.message}\n\nNext: {error.hint}\nAnother bundle: press b"
            return Seen(bundle, stamp, said)

    def _show(self, seen: Seen | None) -> None:
        """Show what was read of a bundle, or the fault that kept it from being read."""
        if seen is None:
            return
        bundle = seen.bundle
        if self._bundle not in (None, bundle):
            self._look()  # another one was asked for meanwhile
            return
        self._bundle, self._stamp, self.results, self._samples = (
            bundle,
            seen.stamp,
            seen.results,
            seen.samples,
        )
        pages = self.query_one("#pages", ContentSwitcher)
        if self.results is None:
            self.query_one("#nothing", Static).update(seen.fault)
            pages.current = "nothing"
            state = f"{plain(bundle.name)}  {Symbols.failed} UNREADABLE" if bundle else "no bundle yet"
            self.title_text = state
            self.draw_shell_command()
        elif pages.current == "nothing":
            pages.current = "overview"
            self.query_one("#variants").focus()
        self._draw()
        self.refresh_bindings()

    # Drawing

    def _draw(self) -> None:
        if self.results is None:
            return
        self.title_text = results.title(self.results)
        self._draw_table(self.results)
        self._draw_detail()
        self.query_one(Pictures).draw(self.results)
        self.draw_progress()
        self.draw_shell_command()

    def _draw_table(self, found: Results) -> None:
        table = self.query_one("#variants", DataTable)
        cursor = self._cursor  # clearing moves it
        table.clear(columns=True)
        figures = results.figures(found)
        table.add_columns("  variant", "gates", *(Text(one.head, justify="right") for one in figures))
        for row in found.rows:
            name, word = row.variant.name, results.gate_word(row)
            cells = [Text(one.words(one.of(row.variant)), justify="right") for one in figures]
            mark = "*" if name in self._marked else " "
            table.add_row(Text(f"{mark} {name}"), Text(word, "bold red" if row.failed else ""), *cells)
        rows = [row.variant.name for row in found.rows]
        if cursor not in rows:
            files = (row.variant.name for row in found.rows if row.variant.path)
            cursor = next(files, rows[0] if rows else "")
        if cursor:
            table.move_cursor(row=rows.index(cursor))
        self._cursor = cursor

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Tell of the variant under the cursor."""
        rows, at = self.results.rows if self.results else (), event.data_table.cursor_row
        if (
            at < len(rows) and (name := rows[at].variant.name) != self._cursor
        ):  # where it is now, not where it was
            self._cursor = name
            self._draw_detail()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Enter goes to what is told of it, to scroll there."""
        self.remove_class("-drawn")
        self.query_one("#more").focus()

    def _row(self) -> Row | None:
        return self.results.row(self._cursor) if self.results else None

    def _draw_detail(self) -> None:
        if self.results is not None:
            lines = results.detail(self.results, self._row())
            self.query_one("#detail", Static).update(styled(lines))

    def draw_shell_command(self) -> None:
        """The pending command, or the one that tells the same as what is shown."""
        if self.pending is not None:
            self.shell_command = self.pending.text
        elif self._bundle is None:
            self.shell_command = DEMO
        elif len(self._marked) == 2 and set(self._marked) <= set(self._samples.variants):
            self.shell_command = samples_view.compare_command(self._bundle, *self._marked).text
        else:
            self.shell_command = Command(("verify", str(self._bundle))).text

    # Exporting

    def document(self) -> Any:
        """The table."""
        return None if self.results is None else results.table(self.results)

    # Keys

    def offers(self, action: str) -> bool:
        """Hide what does nothing here."""
        return self.results is not None or action not in OVERVIEW

    def action_picture(self) -> None:
        """Show the pictures beside the table, on a narrow terminal in place of the detail, or hide them."""
        self.toggle_class("-drawn")

    def action_mark(self) -> None:
        """Mark the variant under the cursor; the third mark takes the first's place."""
        name = self._cursor
        if name in self._marked:
            self._marked.remove(name)
        elif name:
            self._marked = [*self._marked[-1:], name]
        self._draw()

    def action_diff(self) -> None:
        """The two marked variants, or the marked one and the one under the cursor."""
        names = self._marked if len(self._marked) == 2 else [*self._marked, self._cursor]
        rows = [row for name in dict.fromkeys(names) if self.results and (row := self.results.row(name))]
        if len(rows) != 2:
            self.notify(
                "Mark two variants with space, then press d. Two bundles: press b.", severity="warning"
            )
            return
        names = [row.variant.name for row in rows]
        tables = [("figure", differences.differences(*rows))]
        if set(names) <= set(self._samples.variants):
            tables.append(("answers", samples_view.differences(self._samples, *names)))
        self.app.push_screen(Beside((names[0], names[1]), tables))

    def action_samples(self) -> None:
        """The answers side by side."""
        if self.results is not None:
            self.app.push_screen(SamplesScreen(self.title_text, self._samples, self.results.bundle))

    def action_page(self) -> None:
        """Where the page is."""
        if self._bundle is not None:
            page = (self._bundle / "report.html").resolve()
            said = (
                str(page) if page.is_file() else f"{page} is not there: this bundle was written without one."
            )
            self.notify(said, title="Report for a browser", timeout=15, markup=False)

    @work
    async def action_bundles(self) -> None:
        """Choose another bundle."""
        folder = self.edgekit.settings.bundles
        found = await from_thread(self, partial(bundles.bundles_in, folder))
        if not found:
            said = f"There is no bundle in {folder} yet; press 1 to build one."
            self.notify(said, severity="warning", markup=False)
            return
        if not self.is_active:  # the person has gone on to something else
            return
        answer = await self.app.push_screen_wait(Bundles(found, folder, self.edgekit.now()))
        if answer is not None and answer[0] == "compare":
            self._compare(answer[1])
        elif answer is not None:
            self.show(bundle=answer[1])

    def _compare(self, path: Path) -> None:
        """The bundle that is shown beside another."""
        if self.results is None:
            self.notify(
                "The bundle that is shown cannot be read: open another one first.", severity="warning"
            )
            return
        try:
            other = results.load(path)
        except CorruptError as error:
            self.complain(error)
        else:
            names = (self.results.name, other.name)
            self.app.push_screen(Beside(names, differences.between(self.results, other)))
