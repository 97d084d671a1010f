"""Screen 1, the build wizard: five steps, each checked as it is typed, and the command that they come to."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from rich.console import Group, RenderableType
from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.css.query import NoMatches
from textual.events import DescendantBlur, DescendantFocus
from textual.timer import Timer
from textual.widgets import ContentSwitcher, Input, Static

from edgekit.app.screens.base import View
from edgekit.app.screens.dialogs import Ask, Confirm, Sheet
from edgekit.app.screens.inputs import Choices, Line, Paths
from edgekit.app.screens.start import start
from edgekit.app.screens.threads import in_thread
from edgekit.app.views import wizard, wizard_page
from edgekit.app.views.choices import Checks
from edgekit.app.views.paths import Place, look_at_place
from edgekit.app.views.symbols import Symbols
from edgekit.app.views.wizard import QUESTIONS, STEPS, TARGET_COLUMNS, Choice, Finding
from edgekit.base.command import Command, Outcome
from edgekit.models.given_template import CHATML
from edgekit.targets.host import Host
from edgekit.targets.target import Budget

TYPING = "typing: press esc first to use ? and q"
LIMIT_COLUMNS = ("limit", "value", "", "what it says")
LETTERS = (
    "build",
    "other",
    "folder",
    "formats",
    "template",
    "offline",
    "edit",
    "plan",
    "target",
    "again",
    "leaks",
    "download",
    "robust",
)  # actions of single letters
TYPED_S = 0.4  # of quiet before what was typed is checked


class BuildScreen(View):
    """What to build, from which model and rows, for which device; then the command that builds it."""

    NAME = "build"
    DEFAULT_CSS = """
    BuildScreen #left { width: 28; padding: 0 1; border-right: solid $panel; }
    BuildScreen.-wide #left { width: 44; }
    BuildScreen #steps { link-style: none; link-color: $foreground; link-background: transparent; }
    BuildScreen #estimate { margin-top: 1; }
    BuildScreen #right { width: 1fr; padding: 0 1; }
    BuildScreen #question { text-style: bold; }
    BuildScreen #help { color: $text-muted; margin-bottom: 1; }
    BuildScreen #answers, BuildScreen #answers > Vertical { height: auto; }
    BuildScreen #answers Input { background: $panel; }
    BuildScreen #targets { height: auto; max-height: 8; margin-bottom: 1; }
    BuildScreen #limits { height: auto; max-height: 9; }
    BuildScreen.-wide #limits, BuildScreen.-wide #targets { max-height: 16; }
    BuildScreen #words { color: $text-muted; height: auto; }
    BuildScreen #findings { height: 1fr; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "next", "Next", id="build-next", key_display="enter", tooltip="The next step"),
        Binding("escape", "before", "Back", id="build-before", tooltip="The previous step"),
        Binding("b", "build", "Build", id="build-start", tooltip="Start the build (asks first)"),
        Binding("n", "other", "Rename", id="build-other", tooltip="Use the suggested free folder name"),
        Binding("f", "folder", "Folder", id="build-folder", tooltip="Choose the output folder"),
        Binding("space", "edit", "Change", id="build-edit", tooltip="Change this value"),
        Binding(
            "p", "plan", "Plan", id="build-plan", tooltip="Show what the build would do and need (dry run)"
        ),
        Binding("e", "target", "Target", id="build-target", tooltip="Show every value of the target"),
        Binding(
            "l", "formats", "Leave out", id="build-formats", tooltip="Leave out formats that cannot be made"
        ),
        Binding("x", "leaks", "Leaks", id="build-leaks", tooltip="Leave out rows that stand in two splits"),
        Binding(
            "d", "download", "Download", id="build-download", tooltip="Download the hub data set (asks first)"
        ),
        Binding("t", "template", "ChatML", id="build-template", tooltip="Give a base model a chat template"),
        Binding(
            "o", "offline", "Offline", id="build-offline", tooltip="Use the hub's cache alone, or the hub"
        ),
        Binding(
            "u",
            "robust",
            "Robust",
            id="build-robust",
            tooltip="Tune for typos and other phrasings too, or not",
        ),
        Binding("r", "again", "Recheck", id="build-again", tooltip="Run all checks again"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.choice = Choice()
        self.checks = Checks()
        self.place: Place | None = None
        self._machine = Host.here()
        self._timer: Timer | None = None
        self.starting = False

    def compose_view(self) -> ComposeResult:
        """Steps and estimate on the left; one question, its answer and what the checks say on the right."""
        settings = self.edgekit.settings
        if not settings.demo:  # which shows the command as it is typed elsewhere
            self.choice = Choice(cache_dir=settings.cache_dir, bundles=settings.bundles)
        with Horizontal():
            with Vertical(id="left"):
                yield Static(id="steps")
                yield Static(id="estimate")
            with Vertical(id="right"):
                yield Static(id="question")
                yield Static(id="help")
                with ContentSwitcher(initial="on-model", id="answers"):
                    with Vertical(id="on-model"):
                        yield self._line("model")
                    with Vertical(id="on-target"):
                        yield Choices(cursor_type="row", id="targets")
                        yield self._line("target")
                    with Vertical(id="on-data"):
                        yield self._line("data")
                        yield Line(id="columns", compact=True, placeholder="columns: guessed by their names")
                    with Vertical(id="on-budget"):
                        yield Choices(cursor_type="row", id="limits")
                        yield Static(id="words")
                        yield Line(id="limit", compact=True, placeholder="another limit")
                    yield Vertical(id="on-review")
                with VerticalScroll(id="findings"):
                    yield Static(id="found")

    def _line(self, name: str) -> Line:
        suggester = Paths(QUESTIONS[name].names, QUESTIONS[name].suffix)
        return Line(getattr(self.choice, name), id=name, compact=True, suggester=suggester)

    def on_mount(self) -> None:
        """Begin with the first question."""
        limits, targets = self.query_one("#limits", Choices), self.query_one("#targets", Choices)
        for label in LIMIT_COLUMNS:
            limits.add_column(label, key=label)
        for limit in wizard.limits(self.choice, None):
            limits.add_row(limit.key, "", "", limit.short, key=limit.key)
        targets.add_columns(*TARGET_COLUMNS)
        for row in wizard.shipped(self._machine):
            targets.add_row(*row, key=row[0])
        targets.move_cursor(row=targets.get_row_index(self.choice.target))
        self.action_open(0)

    # what was chosen

    def action_open(self, step: int) -> None:
        """Show one step."""
        self.step = step
        name = STEPS[step]
        self.query_one("#answers", ContentSwitcher).current = f"on-{name}"
        lines = (
            {} if self.edgekit.settings.demo else {"model": "#model", "data": "#data"}
        )  # a look types nothing
        focus = {**lines, "target": "#targets", "budget": "#limits"}
        self.query_one(focus.get(name, "#findings")).focus()
        self._look()
        self.query_one("#findings", VerticalScroll).scroll_home(animate=False)
        self.draw()

    def change(self, **values: Any) -> None:
        """Take what was chosen or typed; it is checked after a moment of quiet."""
        before, after = self.choice, replace(self.choice, **values)
        if (before.model, before.target) != (after.model, after.target):
            after = replace(after, formats=())  # another model or target may be made in other formats
        if before.model != after.model:
            after = replace(after, chat_template="")
        self.choice = after
        if self.choice == before:
            return
        self.place = None
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(TYPED_S, self._look)
        self.draw()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        name, value = event.input.id, event.value
        if name in ("model", "target", "data", "columns"):
            self.change(**{name: value})
        elif name == "limit" and event.input.has_focus:
            self._set_limit(value.strip())

    def _set_limit(self, value: str) -> None:
        key = self._limit_key()
        kept = [(name, old) for name, old in self.choice.limits if name != key]
        self.change(limits=tuple(kept + ([(key, value)] if value else [])))

    def _limit_key(self) -> str:
        table = self.query_one("#limits", Choices)
        return list(Budget.model_fields)[max(0, table.cursor_row)]

    @on(Choices.RowHighlighted, "#targets")
    def _chosen(self, event: Choices.RowHighlighted) -> None:
        if self.step == STEPS.index("target") and event.row_key.value:
            self.query_one("#target", Input).value = event.row_key.value
            self.draw()

    @on(Choices.RowHighlighted, "#limits")
    def _limit_chosen(self) -> None:
        self.query_one("#limit", Input).value = dict(self.choice.limits).get(self._limit_key(), "")
        self.draw()

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        if event.input.id == "limit":
            self.query_one("#limits").focus()
        else:
            self.action_next()

    @on(Choices.RowSelected)
    def _selected(self) -> None:
        self.action_next()

    @on(DescendantFocus)
    @on(DescendantBlur)
    def _focus_moved(self) -> None:
        self.refresh_bindings()
        self.draw()

    # what the checks say

    def _look(self) -> None:
        """Ask what is not known yet of the choice; answers to older questions are dropped, their processes ended."""
        for command in self.checks.wanted(self.choice, typing=self._names_model):
            self.edgekit.ask(command, partial(self._answered, command))
        if self.place is None:
            self._look_at_place(self.choice)

    def _answered(self, command: Command, outcome: Outcome) -> None:
        if self.checks.take(command, outcome) and self.is_mounted:
            self._look()
            self.draw()

    def _look_at_place(self, choice: Choice) -> None:
        in_thread(self, partial(look_at_place, choice), partial(self._place_found, choice))

    def _place_found(self, choice: Choice, place: Place) -> None:
        if choice == self.choice:
            self.place = place
            self.draw()

    @property
    def _names_model(self) -> bool:
        """Whether the step of the model's name is open: it may be half typed."""
        return STEPS[self.step] == "model"

    @property
    def _plan(self) -> Outcome | None:
        return self.checks.answer(self.choice.plan)

    @property
    def _audit(self) -> Outcome | None:
        return self.checks.answer(self.choice.audit)

    def findings(self) -> dict[str, Finding]:
        """What is known of each step."""
        choice, plan = self.choice, self._plan
        shown, audit = self.checks.answer(choice.shown), self._audit
        target = wizard.target_finding(choice, shown, plan, self._machine)
        data = wizard.data_finding(choice, audit)
        budget = wizard.budget_finding(choice, shown, plan)
        model = wizard.model_finding(choice, plan, (target, data, budget), typing=self._names_model)
        found = {"model": model, "target": target, "data": data, "budget": budget}
        place = self.place.finding if self.place else None
        return {**found, "review": wizard.review_finding(choice, plan, place, found.values())}

    # drawing

    def draw(self) -> None:
        """Show the choice and what is known of it."""
        try:
            name, found = STEPS[self.step], self.findings()
            width = self.query_one("#left").content_size.width or 25
            steps = wizard_page.steps_text(self.choice, found, self.step, width)
            self.query_one("#steps", Static).update(steps)
            self.query_one("#estimate", Static).update(wizard_page.estimate_text(self._plan))
            self.query_one("#question", Static).update(Text(QUESTIONS[name].text))
            self.query_one("#help", Static).update(Text(QUESTIONS[name].help))
            self.query_one("#estimate").display = name != "review"  # which says it itself
            if name == "budget":
                self._draw_limits()
            page: RenderableType = wizard_page.found_text(found[name])
            if name == "data":
                page = Group(page, "", wizard_page.robust_text(self._robust))
            if name == "review":
                end = wizard_page.end_text(found, self.place, self.starting)
                page = wizard_page.review_text(self.choice, self._plan, found[name], end, robust=self._robust)
            self.query_one("#found", Static).update(page)
        except NoMatches:  # the screen is being taken down
            return
        typing = f"   {TYPING}" if isinstance(self.focused, Input) else ""
        self.title_text = f"build {Symbols.line} {self.step + 1}/{len(STEPS)} {name}{typing}"
        self.shell_command = self.choice.build.text
        self.refresh_bindings()

    def _draw_limits(self) -> None:
        table = self.query_one("#limits", Choices)
        found = wizard.limits(self.choice, self.checks.answer(self.choice.shown))
        for limit in found:
            state = Text("wrong", "bold red") if limit.fault else Text("changed" if limit.own else "", "bold")
            table.update_cell(limit.key, "value", limit.value, update_width=True)
            table.update_cell(limit.key, "", state, update_width=True)
        self.query_one("#words", Static).update(Text(found[max(0, table.cursor_row)].words))

    # what the keys do

    def offers(self, action: str) -> bool:
        """Single letters are text while a line is written; `b` and the folder belong to the review."""
        name = STEPS[self.step]
        if isinstance(self.focused, Input) and action in LETTERS:
            return False
        if action == "robust":
            return name in ("data", "review")
        if action in ("build", "folder"):
            return name == "review"
        if action == "other":
            return name == "review" and bool(self.place and self.place.other)
        if action == "formats":
            return name in ("target", "review") and bool(self._formats())
        if action == "leaks":
            return name == "data" and (self.choice.drop_leaks or wizard.leaks(self._audit))
        if action == "download":
            missing = wizard.must_be_downloaded(self.choice, self._audit)
            return name == "data" and missing and not self.choice.offline
        if action == "offline":
            on_hub = {"model": self.choice.model_on_hub, "data": self.choice.data_on_hub}
            return on_hub.get(name, False) or (self.choice.offline and name in on_hub)
        if action == "template":
            return name == "model" and bool(self.choice.chat_template or self._lacks_template())
        return name != "review" if action == "edit" else True

    def action_next(self) -> None:
        """The next step; the review is the last."""
        if self.step + 1 < len(STEPS):
            self.action_open(self.step + 1)

    def action_before(self) -> None:
        """Out of a line below a list, else the step before, else out of the line, else the screen before."""
        if isinstance(self.focused, Input) and self.focused.id in ("target", "limit"):
            self.query_one("#targets" if self.focused.id == "target" else "#limits").focus()
        elif isinstance(self.focused, Input) and self.focused.id == "columns":
            self.query_one("#data").focus()
        elif self.step > 0:
            self.action_open(self.step - 1)
        elif isinstance(self.focused, Input):
            self.query_one("#findings").focus()
        else:
            self.call_later(self.app.run_action, "back")

    def action_edit(self) -> None:
        """Write in the line of this step."""
        name = STEPS[self.step]
        self.query_one("#limit" if name == "budget" else f"#{name}", Input).focus()

    def action_again(self) -> None:
        """Check everything again."""
        self.checks.forget()
        self.choice, self.place = replace(self.choice), None  # `model_on_hub` is looked at anew
        self._look()
        self.draw()

    def action_other(self) -> None:
        """Take the free name near the folder that is taken."""
        if self.place is not None and self.place.other:
            self.change(out=self.place.other)

    @work
    async def action_folder(self) -> None:
        """Ask for the folder to write."""
        text = await self.app.push_screen_wait(Ask("Output folder?", value=str(self.choice.place)))
        if text is not None:
            self.change(out=text)

    def _formats(self) -> tuple[str, ...]:
        """What the key `l` is about: the formats chosen, or those that can be made where others cannot."""
        return self.choice.formats or wizard.possible_formats(self._plan)

    def action_formats(self) -> None:
        """Build only the formats that can be made; again, build every format of the target."""
        self.change(formats=() if self.choice.formats else self._formats())

    @property
    def _robust(self) -> bool:
        return wizard.is_robust(self.choice, self.checks.answer(self.choice.shown))

    def action_robust(self) -> None:
        """Turn robust tuning on or off."""
        self.change(robust=wizard.toggled(self.choice, self.checks.answer(self.choice.shown)))

    def action_leaks(self) -> None:
        """Leave out the rows whose prompts are also in a later split; again, refuse them."""
        self.change(drop_leaks=not self.choice.drop_leaks)

    @work
    async def action_download(self) -> None:
        """Download a hub data set into the hub's cache (asks first), then check it."""
        if await self.app.push_screen_wait(Confirm(f"Download {self.choice.data} from the hub?")):
            self.notify(f"$ {self.choice.download.text}", timeout=3, markup=False)
            self.edgekit.ask(self.choice.download, self._downloaded)

    def _downloaded(self, outcome: Outcome) -> None:
        if outcome.code != 0:
            self.notify(outcome.message, severity="warning", markup=False)
        self.action_again()

    def action_offline(self) -> None:
        """Use only what the hub's cache has; again, allow downloads."""
        self.change(offline=not self.choice.offline)

    def _lacks_template(self) -> bool:
        return not (wizard.planned(self._plan) or {}).get("chat_template", True)

    def action_template(self) -> None:
        """Give a base model the built-in chat template; again, take it away."""
        self.change(chat_template="" if self.choice.chat_template else CHATML)

    def action_target(self) -> None:
        """Every value of the target, with the file it comes from."""
        self._show(self.choice.resolved)

    @work
    async def action_plan(self) -> None:
        """What the build would do and need; asks before the first download of a hub model's config and tokenizer."""
        if wizard.downloads(self.choice) and self._plan is None:
            text = f"{self.choice.model} is a hub model. {wizard.DOWNLOADED} Go on?"
            if not await self.app.push_screen_wait(Confirm(text)):
                return
        self._show(replace(self.choice.plan, plain=True))

    def _show(self, command: Command) -> None:
        """Show what a command prints, on a page."""

        def answered(outcome: Outcome) -> None:
            text = f"{outcome.document or ''}\n{outcome.message}".strip()
            self.app.push_screen(Sheet(command.text, text or "It printed nothing."))

        self.notify(f"$ {command.text}", timeout=3, markup=False)
        self.edgekit.ask(command, answered)

    @work
    async def action_build(self) -> None:
        """Start the build (asks first); a build that runs already can be watched instead."""
        if self.starting:
            return
        if self.edgekit.settings.demo:
            self.notify("This is a recorded build. Start without --demo to build.", severity="warning")
            return
        found = self.findings()
        for state, what in (("FAILED", "Check"), ("CHECKING", "Still checking")):
            if steps := ", ".join(step for step in STEPS if found[step].state == state):
                self.notify(f"The build cannot start yet. {what}: {steps}.", severity="warning")
                return
        await start(self, self.choice, self._plan, self._set_starting)

    def _set_starting(self, starting: bool) -> None:
        self.starting = starting
        self.draw()

    def document(self) -> Any:
        """The choice and what is known of it."""
        plan = wizard.planned(self._plan)
        found = {step: vars(finding) for step, finding in self.findings().items()}
        return {"command": self.choice.build.text, "steps": found, "plan": plan}
