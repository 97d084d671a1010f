"""Promoting and serving from the results screen: what is asked, what runs, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from results_app import opened, read, screen, steps, told, typed, writing
from results_support import write_bundle
from tui_support import run, text_of, until

from edgekit.base.command import Command, Outcome
from edgekit.tui import EdgekitApp


def commands(monkeypatch: pytest.MonkeyPatch, answer: Callable[[Command], Outcome]) -> list[tuple[str, ...]]:
    """The commands that were run, answered by `answer`."""
    ran: list[tuple[str, ...]] = []

    def stand_in(self: Command, timeout_s: float | None = None) -> Outcome:
        ran.append(self.arguments)
        return answer(self)

    monkeypatch.setattr(Command, "run", stand_in)
    return ran


def test_a_bundle_that_failed_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "bundles" / "bad", passed=False)
    ran = commands(monkeypatch, lambda command: Outcome(command, 0, {}))

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=(80, 24), notifications=True) as pilot:
            await read(pilot)
            await writing(pilot)
            await pilot.press("P")
            await until(pilot, lambda: "cannot be promoted: gguf.mean_kld_nats" in told(found))
            assert ran == []

    run(look())


def promoting(answer: Callable[[Command], Outcome], check: Callable[[Any, Any], Any]) -> Any:
    """A test that types all a promotion asks for, and then checks."""

    def test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_bundle(tmp_path / "bundles" / "good")
        ran = commands(monkeypatch, answer)

        async def look() -> None:
            found = opened(tmp_path)
            async with found.run_test(size=(80, 24), notifications=True) as pilot:
                shown = await read(pilot)
                await writing(pilot)
                await pilot.press("P")
                await until(pilot, lambda: "releases import" in shown.shell_command)
                await typed(pilot, "it is better")
                await until(pilot, lambda: "JSONL rows" in text_of(found))
                await typed(pilot, "rows.jsonl")
                await until(pilot, lambda: "Type good to go on" in text_of(found))
                await typed(pilot, "goof")
                await pilot.pause()
                assert ran == []  # another word than the bundle's name
                await typed(pilot, "good")
                await check(pilot, ran)

        run(look())

    return test


async def on_trial(pilot: Any, ran: list[tuple[str, ...]]) -> None:
    await until(pilot, lambda: "is on trial" in steps(pilot.app))
    assert "✓ DONE import" in steps(pilot.app) and "0 of 4 answers lost" in steps(pilot.app)
    assert "✓ DONE import" in text_of(pilot.app)
    state = str(pilot.app.settings.state)
    assert ran == [
        ("releases", "import", str(pilot.app.settings.bundles / "good"), "--state", state),
        (
            "releases",
            "promote",
            "abc123",
            "--why",
            "it is better",
            "--data",
            "rows.jsonl",
            "--state",
            state,
            "--yes",
        ),
    ]
    assert screen(pilot.app).shell_command.startswith("edgekit verify")


test_a_promotion_is_two_commands_in_turn = promoting(
    lambda command: Outcome(
        command,
        0,
        {"name": "abc123", "place": "pending", "tries": 3, "comparison": {"detail": "0 of 4 answers lost"}},
    ),
    on_trial,
)


async def refused_import(pilot: Any, ran: list[tuple[str, ...]]) -> None:
    await until(pilot, lambda: "✗ FAILED import" in steps(pilot.app))
    assert "its digest differs. Copy it again." in steps(pilot.app) and len(ran) == 1


test_a_refused_import_is_a_sentence_and_ends_it = promoting(
    lambda command: Outcome(command, 5, None, "model.gguf: its digest differs.", "Copy it again."),
    refused_import,
)


async def refused_promotion(pilot: Any, ran: list[tuple[str, ...]]) -> None:
    await until(pilot, lambda: "✗ FAILED promote" in steps(pilot.app))
    text = steps(pilot.app)
    assert "✓ DONE import" in text and "answers worse than def456. The flips are in x." in text
    assert len(ran) == 2


test_a_refused_promotion_says_why = promoting(
    lambda command: (
        Outcome(command, 0, {"name": "abc123"})
        if "import" in command.arguments
        else Outcome(command, 3, None, "abc123 answers worse than def456.", "The flips are in x.")
    ),
    refused_promotion,
)


async def unproven(pilot: Any, ran: list[tuple[str, ...]]) -> None:
    await until(pilot, lambda: "Type unproven to go on" in text_of(pilot.app))
    assert "3 answers are too few" in text_of(pilot.app) and "✗ FAILED promote" in steps(pilot.app)
    assert len(ran) == 2 and "--unproven" not in ran[-1]
    await typed(pilot, "yes")
    await pilot.pause()
    assert len(ran) == 2  # another word
    await typed(pilot, "unproven")
    await until(pilot, lambda: "is on trial" in steps(pilot.app))
    assert ran[-1] == (*ran[-2], "--unproven")


test_a_promotion_without_proof_is_offered_and_typed = promoting(
    lambda command: (
        Outcome(command, 3, None, "3 answers are too few.", "Compare on more rows, or add --unproven.")
        if "promote" in command.arguments and "--unproven" not in command.arguments
        else Outcome(command, 0, {"name": "abc123", "place": "pending", "tries": 3})
    ),
    unproven,
)


def test_nothing_starts_while_read_only_or_on_a_port_that_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "bundles" / "good")
    monkeypatch.setattr(Command, "start", _ending)
    ran = commands(monkeypatch, lambda command: Outcome(command, 0, {}))

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=(80, 24), notifications=True) as pilot:
            await read(pilot)
            await pilot.press("P", "S")
            await until(pilot, lambda: told(found).count("press w") == 2)
            assert len(found.screen_stack) == 2 and ran == []
            await writing(pilot)
            await pilot.press("S")
            await typed(pilot, "x [/tmp/y")
            await until(pilot, lambda: "'x [/tmp/y' is no port" in told(found))
            await pilot.press("S")
            await typed(pilot, "9000")
            await until(pilot, lambda: "The server does not run. Port 9000 is in use." in told(found))

    run(look())


def test_a_server_is_started_with_its_log_and_told_where_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path / "bundles" / "good")
    started: list[tuple[str, Path]] = []
    gone: list[str] = []

    def start(self: Command, log: Path) -> int:
        started.append((self.text, log))
        return os.getpid()

    monkeypatch.setattr(Command, "start", start)
    monkeypatch.setattr(EdgekitApp, "go", _going(EdgekitApp.go, gone))

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=(80, 24), notifications=True) as pilot:
            await read(pilot)
            await writing(pilot)
            await pilot.press("S")
            await typed(pilot, "")
            await until(pilot, lambda: "Starting on http://127.0.0.1:8080" in told(found) and gone)
            state = found.settings.state
            assert started == [(f"edgekit serve --state {state} --port 8080", state / "serve.log")]
            assert gone == ["monitor"]

    run(look())


def _ending(self: Command, log: Path) -> int:
    """A server that ends at once: the port is taken."""
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("edgekit: Port 9000 is in use.\n")
    return 2**22 + 1  # no such process


def _going(go: Any, gone: list[str]) -> Any:
    """`go`, but the monitor is only noted: it is another test's."""

    def stand_in(self: EdgekitApp, name: str, **what: Any) -> None:
        if name == "monitor":
            gone.append(name)
        else:
            go(self, name, **what)

    return stand_in
