"""The build wizard in the app: enter through the demo, faults as they are typed, and the start."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input, Static
from tui_support import app, run, text_of, until

from edgekit.app.screens import start
from edgekit.app.screens.base import View
from edgekit.app.screens.build import BuildScreen
from edgekit.app.screens.dialogs import Ask, Confirm, Sheet
from edgekit.app.screens.inputs import Choices
from edgekit.app.views.wizard import STEPS
from edgekit.base.command import Command, Outcome
from edgekit.build import runs
from edgekit.targets.host import Host
from edgekit.tui import EdgekitApp

SIZES = [(80, 24), (160, 50)]
LABELS = {split: {"a": 4, "b": 5} for split in ("train", "validation", "test")}


@dataclass
class Shell:
    """Answers commands in place of processes; `held` keeps every answer back."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    started: list[str] = field(default_factory=list)
    why: str = ""

    def run(self, command: Command, timeout_s: float | None = None) -> Outcome:
        self.asked.append(command.text)
        self.held.wait(10)
        for part, outcome in self.outcomes.items():
            if part in command.text:
                return outcome
        return Outcome(command, 0, self.document(command))

    def document(self, command: Command) -> Any:
        if command.plain:
            return (
                "device.threads  2"
                if command.arguments[0] == "targets"
                else "rows  800 train, 150 validation"
            )
        if command.arguments[0] == "data":
            rows = {"train": 800, "validation": 150, "test": 300}
            return {"rows": rows, "labels": LABELS, "missing_in_card": []}
        if command.arguments[0] == "targets":
            values = {
                "summary": "small CPUs",
                "device.arch": ["x86_64"],
                "device.threads": 1,
                "device.memory_mib": 64,
            }
            values |= {"budget.size_mib": 240, "budget.peak_rss_mib": 700}
            return {key: {"value": value, "origin": "a.toml"} for key, value in values.items()}
        export = {"format": "gguf", "type": "Q8_0", "estimated_mib": 77.0, "refusal": ""}
        return {
            "model": "m", "architecture": "LlamaForCausalLM", "parameters": 134e6, "target": "t", "exports": [export],
            "rows": {"train": 800, "validation": 150, "test": 300}, "disk_needed_mib": 2048, "disk_free_mib": 8192,
            "memory_needed_mib": 1024, "memory_available_mib": 4096, "minutes_expected": 12.0, "missing_parts": [],
            "problems": [],
        }  # fmt: skip

    def launch(self, command: Command, cache_dir: Path, gone: Callable[[], bool]) -> str:
        self.started.append(command.text)
        while not self.held.wait(0.05) and not gone():
            pass
        return self.why


class Watch(View):
    NAME = "run"

    def compose_view(self) -> Any:
        yield Static("the run is watched")


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Shell]:
    found = Shell()
    found.held.set()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Command, "run", lambda self, timeout_s=None: found.run(self, timeout_s))
    monkeypatch.setattr(Command, "stop", lambda self: found.stopped.append(self.text))
    monkeypatch.setattr(Host, "here", classmethod(lambda cls: cls("x86_64", 2, 8000)))
    monkeypatch.setattr(start, "launch", found.launch)
    monkeypatch.setitem(EdgekitApp.SCREENS, "run", Watch)
    yield found
    found.held.set()


def wizard(
    tmp_path: Path, size: tuple[int, int], test: Callable[[Any, BuildScreen], Any], **settings: Any
) -> None:
    """Run `test(pilot, screen)` in the app, once the wizard is there."""

    async def whole() -> None:
        shown = app(Path(), **settings)
        async with shown.run_test(size=size) as pilot:
            await until(pilot, lambda: isinstance(shown.screen, BuildScreen) and shown.screen.shell_command)
            assert isinstance(shown.screen, BuildScreen)
            await test(pilot, shown.screen)

    run(whole())


def state(screen: BuildScreen, step: str) -> str:
    return screen.findings()[step].state


def settled(screen: BuildScreen) -> bool:
    return all(finding.state != "CHECKING" for finding in screen.findings().values())


def said(screen: BuildScreen) -> str:
    """What stands in the right half, as one line."""
    return " ".join(" ".join(line.rpartition("│")[2] for line in text_of(screen.app).splitlines()).split())


async def write(pilot: Any, screen: BuildScreen, name: str, text: str) -> None:
    """Replace what stands in a line by typing."""
    line = screen.query_one(f"#{name}", Input)
    line.focus()
    line.value = ""
    await pilot.press(*text)
    assert line.value == text


@pytest.mark.parametrize("size", SIZES)
def test_enter_and_b_build_the_demo(shell: Shell, tmp_path: Path, size: tuple[int, int]) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        for number, step in enumerate(STEPS):
            await until(pilot, lambda step=step: f"{step}" in screen.title_text and settled(screen))
            text = text_of(pilot.app)
            assert f"build ─ {number + 1}/5 {step}" in text and text.count("✓ ok") >= 5
            await pilot.press("enter")
        command = "edgekit build --model smollm2-135m --target cpu-int4 --data demo"
        assert "Press b to build." in said(screen) and screen.choice.build.text in said(screen)
        await pilot.press("b")
        await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        assert "about 12 min" in text_of(pilot.app) and not shell.started
        await pilot.press("enter")
        await until(pilot, lambda: "the run is watched" in text_of(pilot.app))
        assert shell.started == [screen.choice.build.text] and shell.started[0].startswith(command)

    wizard(tmp_path, size, test)


def test_b_starts_nothing_before_the_checks_and_escape_starts_nothing(shell: Shell, tmp_path: Path) -> None:
    shell.held.clear()

    async def test(pilot: Any, screen: BuildScreen) -> None:
        await pilot.press(*["enter"] * 5, "b")
        told = "The build cannot start yet. Still checking: model, target, data, review."
        await until(pilot, lambda: [note.message for note in pilot.app._notifications] == [told])
        assert "▶ checking" in text_of(pilot.app) and pilot.app.screen is screen
        shell.held.set()
        await until(pilot, lambda: "Press b to build" in said(screen))
        await pilot.press("b")
        await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is screen)
        assert not shell.started

    wizard(tmp_path, (80, 24), test)


def test_faults_are_shown_as_they_are_typed_and_block_the_start(shell: Shell, tmp_path: Path) -> None:
    faults = tuple(f"rows.jsonl:{line}: not JSON" for line in range(1, 22))
    shell.outcomes["audit 'bad"] = Outcome(
        Command(("x",)), 2, None, "21 rows cannot be used.", "Mend them.", faults
    )

    async def test(pilot: Any, screen: BuildScreen) -> None:
        screen.action_open(2)
        await write(pilot, screen, "data", "bad 1wq?")  # every letter is text there
        await until(pilot, lambda: state(screen, "data") == "FAILED")
        for words in ("✗ failed", "21 rows cannot be used.", "rows.jsonl:1: not JSON"):
            await until(pilot, lambda words=words: words in text_of(pilot.app))
        assert state(screen, "model") == "WAITING" and screen.is_current
        await pilot.press("enter", "enter")
        await until(pilot, lambda: "check data" in text_of(pilot.app))
        await pilot.press("b")
        await pilot.pause()
        assert pilot.app.screen is screen and not shell.started
        screen.action_open(2)
        await write(pilot, screen, "data", "demo")
        await until(pilot, lambda: settled(screen) and state(screen, "data") == "OK")

    wizard(tmp_path, (80, 24), test)


def test_only_what_was_typed_last_counts(shell: Shell, tmp_path: Path) -> None:
    shell.outcomes["audit first"] = Outcome(Command(("x",)), 2, None, "The first one is wrong.")

    async def test(pilot: Any, screen: BuildScreen) -> None:
        await until(pilot, lambda: settled(screen))
        screen.action_open(2)
        shell.held.clear()
        await write(pilot, screen, "data", "first")
        await until(pilot, lambda: any("audit first" in text for text in shell.asked))
        await write(pilot, screen, "data", "second")
        await until(pilot, lambda: any("audit second" in text for text in shell.asked))
        assert any("audit first" in text for text in shell.stopped)
        shell.held.set()
        await until(pilot, lambda: settled(screen))
        assert state(screen, "data") == "OK" and "wrong" not in text_of(pilot.app)

    wizard(tmp_path, (80, 24), test)


def test_targets_show_what_they_make_and_whether_they_run_here(shell: Shell, tmp_path: Path) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        await pilot.press("enter")
        table = screen.query_one("#targets", Choices)
        await until(pilot, lambda: "no: needs aarch64" in text_of(pilot.app))
        assert table.get_row_at(table.cursor_row)[0] == screen.choice.target == "cpu-int4"
        cells = [table.get_row_at(row)[1] for row in range(table.row_count)]
        assert "no: needs aarch64" in cells and "no: needs 4 cores" in cells
        await pilot.press("down", "end")
        await until(pilot, lambda: screen.choice.target != "cpu-int4")
        assert table.get_row_at(table.cursor_row)[0] == screen.choice.target
        assert screen.query_one("#target", Input).value == screen.choice.target
        await until(pilot, lambda: any(f"show {screen.choice.target}" in text for text in shell.asked))

    wizard(tmp_path, (80, 24), test)


def test_l_leaves_out_the_format_that_cannot_be_made(shell: Shell, tmp_path: Path) -> None:
    whole = shell.document(Command(("plan",)))
    refused = {"format": "onnx", "type": "int4", "estimated_mib": 9.0, "refusal": "It is too odd."}
    both = {**whole, "exports": [*whole["exports"], refused]}

    async def test(pilot: Any, screen: BuildScreen) -> None:
        screen.action_open(STEPS.index("target"))
        await until(pilot, lambda: screen.findings()["target"].state == "FAILED")
        assert screen.findings()["target"].faults == ("onnx: It is too odd.",)
        await pilot.press("l")
        assert "--formats gguf" in screen.shell_command
        await until(pilot, lambda: screen.findings()["target"].state != "FAILED")
        await pilot.press("l")
        assert "--formats" not in screen.shell_command and screen.offers("formats")
        await pilot.press("l")
        screen.change(model="another")  # which may be made in all formats
        assert "--formats" not in screen.shell_command

    shell.outcomes["--formats gguf"] = Outcome(Command(("plan",)), 0, whole)
    shell.outcomes["edgekit plan"] = Outcome(Command(("plan",)), 2, both)
    wizard(tmp_path, (80, 24), test)


def test_the_columns_are_asked_for_and_leaks_are_left_out(shell: Shell, tmp_path: Path) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        screen.action_open(STEPS.index("data"))
        screen.query_one("#data", Input).value = "rows.csv"
        await until(pilot, lambda: screen.findings()["data"].state == "FAILED")
        await pilot.press("tab")
        assert screen.focused is screen.query_one("#columns") and not screen.offers("leaks")
        await pilot.press(*"prompt=a,completion=x")
        assert "--columns prompt=a,completion=x" in screen.shell_command
        await pilot.press("escape")
        assert screen.focused is screen.query_one("#data")
        await until(pilot, lambda: "x to leave" in screen.findings()["data"].hint)
        await pilot.press("tab", "tab", "x")
        assert "--columns prompt=a,completion=x --drop-leaks" in screen.shell_command
        await until(pilot, lambda: screen.findings()["data"].state == "OK")
        await pilot.press("x")
        assert "--drop-leaks" not in screen.shell_command

    shell.outcomes["--drop-leaks"] = Outcome(Command(("data",)), 0, shell.document(Command(("data",))))
    refused = Outcome(
        Command(("data",)), 2, None, message="2 prompts in two splits.", hint="Or add --drop-leaks."
    )
    shell.outcomes["data audit rows.csv"] = refused
    wizard(tmp_path, (80, 24), test)


def test_a_hub_data_set_is_downloaded_when_asked(shell: Shell, tmp_path: Path) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        screen.action_open(STEPS.index("data"))
        screen.query_one("#data", Input).value = "org/rows"
        await until(pilot, lambda: "d to download" in screen.findings()["data"].hint)
        assert not any(text == "edgekit data audit org/rows" for text in shell.asked)
        await pilot.press("tab", "tab", "d")
        await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        del shell.outcomes["--offline"]
        await pilot.press("enter")
        await until(pilot, lambda: screen.findings()["data"].state == "OK")
        assert "edgekit data audit org/rows" in shell.asked

    missing = Outcome(Command(("data",)), 2, None, message="It is not whole in the hub's cache.")
    shell.outcomes["--offline"] = missing
    wizard(tmp_path, (80, 24), test)


def test_t_gives_a_base_model_a_chat_template(shell: Shell, tmp_path: Path) -> None:
    without = {**shell.document(Command(("plan",))), "chat_template": False}

    async def test(pilot: Any, screen: BuildScreen) -> None:
        await until(pilot, lambda: state(screen, "model") == "FAILED")
        await pilot.press("escape", "t")  # out of the line, where letters are text
        assert "--chat-template chatml" in screen.shell_command
        await until(pilot, lambda: state(screen, "model") == "OK")
        await pilot.press("t")
        assert "--chat-template" not in screen.shell_command

    shell.outcomes["--chat-template chatml"] = Outcome(
        Command(("plan",)), 0, shell.document(Command(("plan",)))
    )
    shell.outcomes["edgekit plan"] = Outcome(Command(("plan",)), 2, without)
    wizard(tmp_path, (80, 24), test)


def test_u_tunes_robustly_and_is_told_in_the_review(shell: Shell, tmp_path: Path) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        screen.action_open(STEPS.index("data"))
        await pilot.press("escape", "u")  # out of the step's line, where letters are text, to the step before
        assert "tune.robust" not in screen.shell_command
        screen.action_open(STEPS.index("review"))
        await until(pilot, lambda: "plain (u: robust" in text_of(pilot.app))
        await pilot.press("u")
        assert "--set tune.robust=true" in screen.shell_command
        await until(pilot, lambda: "robust (u: plain)" in text_of(pilot.app))
        await pilot.press("u")
        assert "tune.robust" not in screen.shell_command

    wizard(tmp_path, (80, 24), test)


def test_a_limit_becomes_a_set_option_and_a_wrong_one_is_told(shell: Shell, tmp_path: Path) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        screen.action_open(3)
        await pilot.press("down", "space")
        assert screen.focused is screen.query_one("#limit")
        await pilot.press(*"5b")
        await until(pilot, lambda: state(screen, "budget") == "FAILED")
        assert "wrong" in text_of(pilot.app) and "give a number, not '5b'" in text_of(pilot.app)
        await pilot.press("backspace", *"00", "enter")
        assert screen.choice.limits == (("peak_rss_mib", "500"),) and state(screen, "budget") == "OK"
        assert "--set budget.peak_rss_mib=500" in screen.choice.build.text and "changed" in text_of(pilot.app)
        await until(pilot, lambda: any("plan" in t and "peak_rss_mib=500" in t for t in shell.asked))
        await pilot.press("space", *["backspace"] * 3, "escape")
        assert screen.choice.limits == () and screen.step == 3
        assert screen.focused is screen.query_one("#limits", Choices)

    wizard(tmp_path, (80, 24), test)


def test_a_taken_folder_is_told_and_another_name_proposed(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "bundles" / "smollm2-135m-cpu-int4").mkdir(parents=True)

    async def test(pilot: Any, screen: BuildScreen) -> None:
        screen.action_open(4)
        await until(pilot, lambda: state(screen, "review") == "FAILED")
        await until(pilot, lambda: "is not a bundle" in said(screen))
        await pilot.press("b")
        await pilot.pause()
        assert pilot.app.screen is screen
        await pilot.press("n")
        await until(pilot, lambda: state(screen, "review") == "OK")
        assert screen.choice.out.endswith("smollm2-135m-cpu-int4-2")
        await pilot.press("f")
        await until(pilot, lambda: pilot.app.screen is not screen)
        await pilot.press("end", "x", "enter")
        await until(pilot, lambda: pilot.app.screen is screen and screen.choice.out.endswith("-2x"))

    wizard(tmp_path, (80, 24), test)


def test_a_hub_model_is_planned_once_its_name_is_typed(shell: Shell, tmp_path: Path) -> None:
    def plans() -> list[str]:
        return [text for text in shell.asked if text.startswith("edgekit plan") and "org/name" in text]

    async def test(pilot: Any, screen: BuildScreen) -> None:
        await until(pilot, lambda: settled(screen))
        await write(pilot, screen, "model", "org/name")
        await until(pilot, lambda: state(screen, "model") == "WAITING" and settled(screen))
        assert "downloads the config and the tokenizer" in said(screen) and not plans()
        await pilot.press("escape", "o")
        assert screen.shell_command.endswith("--offline")
        await until(pilot, lambda: state(screen, "model") == "OK")
        assert "offline" in said(screen) and all(text.endswith("--offline") for text in plans())
        await pilot.press("o")
        await until(pilot, lambda: state(screen, "model") == "WAITING")
        screen.action_open(4)
        await until(pilot, lambda: settled(screen))
        assert any("--offline" not in text for text in plans())
        await pilot.press("b")
        await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
        assert "270 MiB of weights are downloaded from the hub first" in text_of(pilot.app)

    document = {**shell.document(Command(("plan",))), "download_mib": 270}
    shell.outcomes["edgekit plan --model org/name"] = Outcome(Command(("plan",)), 0, document)
    wizard(tmp_path, (100, 30), test)


async def build_it(pilot: Any, screen: BuildScreen) -> None:
    """Go to the review, press b, and say yes."""
    screen.action_open(4)
    await until(pilot, lambda: settled(screen))
    await pilot.press("b")
    await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
    await pilot.press("enter")


def test_a_build_that_does_not_start_says_why(shell: Shell, tmp_path: Path) -> None:
    shell.why = "The disk is full. Free some room."

    async def test(pilot: Any, screen: BuildScreen) -> None:
        await build_it(pilot, screen)
        await until(pilot, lambda: isinstance(pilot.app.screen, Sheet))
        assert shell.why in text_of(pilot.app)
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is screen)

    wizard(tmp_path, (80, 24), test)


async def build_held(pilot: Any, screen: BuildScreen, shell: Shell) -> None:
    """A build that is being started, and takes its time."""
    screen.action_open(4)
    await until(pilot, lambda: settled(screen))
    shell.held.clear()
    await pilot.press("b")
    await until(pilot, lambda: isinstance(pilot.app.screen, Confirm))
    await pilot.press("enter")
    await until(pilot, lambda: shell.started and pilot.app.screen is screen)


@pytest.mark.parametrize("why", ["", "It is [/full of odd words"])
def test_a_build_that_has_started_takes_nobody_away_from_a_question(
    shell: Shell, tmp_path: Path, why: str
) -> None:
    shell.why = why

    async def test(pilot: Any, screen: BuildScreen) -> None:
        await build_held(pilot, screen, shell)
        await pilot.press("f")
        await until(pilot, lambda: isinstance(pilot.app.screen, Ask))
        shell.held.set()
        told = why or "The build is running: press 2 to watch it."
        await until(pilot, lambda: [note.message for note in pilot.app._notifications] == [told])
        assert isinstance(pilot.app.screen, Ask)

    wizard(tmp_path, (80, 24), test)


def test_leaving_the_app_waits_for_no_build_to_start(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, ends = threading.Event(), []
    monkeypatch.setattr(start, "launch", lambda *_, **__: str(blocked.wait(10)))

    async def test(pilot: Any, screen: BuildScreen) -> None:
        await build_it(pilot, screen)
        await until(pilot, lambda: screen.starting)
        ends.append(time.monotonic())

    wizard(tmp_path, (80, 24), test)
    assert time.monotonic() - ends[0] < 5
    blocked.set()


def test_the_model_is_looked_for_once_a_change(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    real = os.path.lexists

    def lexists(path: Any) -> bool:
        looks.append(str(path))
        return real(path)

    async def test(pilot: Any, screen: BuildScreen) -> None:
        await until(pilot, lambda: settled(screen))
        monkeypatch.setattr(os.path, "lexists", lexists)
        await write(pilot, screen, "model", "org/name")
        await until(pilot, lambda: state(screen, "model") == "WAITING" and settled(screen))
        assert looks.count("org/name") == 1
        (tmp_path / "org" / "name").mkdir(parents=True)
        screen.action_again()
        assert not screen.choice.model_on_hub

    wizard(tmp_path, (80, 24), test)


def test_a_build_that_runs_already_is_watched_instead(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = runs.Run(tmp_path, model="other", target="cpu-int8", started=time.time(), alive=True)
    monkeypatch.setattr(runs, "read", lambda cache_dir: running)

    async def test(pilot: Any, screen: BuildScreen) -> None:
        screen.action_open(4)
        await until(pilot, lambda: settled(screen))
        await pilot.press("b")
        await until(pilot, lambda: "A build of other for cpu-int8 runs here already" in text_of(pilot.app))
        await pilot.press("enter")
        await until(pilot, lambda: "the run is watched" in text_of(pilot.app))
        assert not shell.started

    wizard(tmp_path, (80, 24), test)


def test_plan_and_target_are_shown_on_a_page_and_back(shell: Shell, tmp_path: Path) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        screen.action_open(4)
        await until(pilot, lambda: settled(screen))
        for key, expected in (("p", "800 train, 150 validation"), ("e", "device.threads")):
            await pilot.press(key)
            await until(pilot, lambda: isinstance(pilot.app.screen, Sheet))
            await until(pilot, lambda expected=expected: expected in text_of(pilot.app))
            await pilot.press("escape")
            await until(pilot, lambda: pilot.app.screen is screen)
        await pilot.press("escape")
        assert STEPS[screen.step] == "budget"

    wizard(tmp_path, (80, 24), test)


def test_a_page_may_be_called_by_anything(shell: Shell, tmp_path: Path) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        pilot.app.push_screen(Sheet("edgekit plan [/tmp/x", "see [/tmp/y"))
        await until(pilot, lambda: "[/tmp/x" in text_of(pilot.app) and "[/tmp/y" in text_of(pilot.app))

    wizard(tmp_path, (80, 24), test)


def test_it_can_be_read_in_ascii(shell: Shell, tmp_path: Path) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        for _ in STEPS:
            await until(pilot, lambda: settled(screen))
            await pilot.pause()
            assert text_of(pilot.app).isascii() and "+ ok" in text_of(pilot.app), text_of(pilot.app)
            await pilot.press("enter")

    wizard(tmp_path, (80, 24), test, ascii=True)


def test_the_view_is_exported_with_its_command(shell: Shell, tmp_path: Path) -> None:
    async def test(pilot: Any, screen: BuildScreen) -> None:
        await until(pilot, lambda: settled(screen))
        found = screen.document()
        assert found["command"] == screen.shell_command
        assert found["plan"]["parameters"] == 134e6 and found["steps"]["data"]["state"] == "OK"

    wizard(tmp_path, (80, 24), test)
