"""What it takes to put a bundle to use: import it, promote it, serve the release in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.app.views.results import Results
from edgekit.app.views.wizard import at_home
from edgekit.base.command import Command, Outcome
from edgekit.base.texts import one_line

UNPROVEN = "--unproven"


def import_command(bundle: Path, state: Path) -> Command:
    """The command that brings a bundle onto this device."""
    return Command(("releases", "import", str(bundle), "--state", str(state)))


def promote_command(release: str, why: str, data: str, state: Path) -> Command:
    """The command that puts a release on trial, compared on the rows in `data`, or on its golden answers without."""
    rows = ("--data", at_home(data)) if data else ()
    return Command(("releases", "promote", release, "--why", why, *rows, "--state", str(state), "--yes"))


def unproven(command: Command, outcome: Outcome) -> Command | None:
    """The promotion without proof, where it was refused only because too few answers were compared."""
    if UNPROVEN not in outcome.hint or UNPROVEN in command.arguments:
        return None
    return Command((*command.arguments, UNPROVEN))


def serve_command(state: Path, port: int) -> Command:
    """The command that serves the release in use."""
    return Command(("serve", "--state", str(state), "--port", str(port)))


def refusal(results: Results | None) -> str:
    """Why a bundle cannot be promoted, before anything runs; empty when it can be tried."""
    if results is None:
        return "There is no bundle here that can be read, so none can be promoted. Build one: press 1."
    if not results.passed:
        names = ", ".join(gate["name"] for gate in results.failed) or f"its verdict is {results.verdict}"
        return f"{results.name} did not pass and cannot be promoted: {names}."
    return ""


def promoted_words(document: Any) -> str:
    """How a promotion ended, with what the comparison found."""
    found = document if isinstance(document, dict) else {}
    name, place = one_line(found.get("name") or "The release"), found.get("place")
    if place == "pending":
        tries = found.get("tries")
        said = f"{name} is on trial: accepted after a successful load, rejected after {tries} failed starts."
    else:
        said = f"{name} is in use already."
    comparison = found.get("comparison")
    if isinstance(comparison, dict):
        return f"{said} Compared with the version before: {one_line(comparison.get('detail', ''))}."
    return f"{said} There was no version before it to compare with." if place == "pending" else said


def port_of(typed: str) -> int | None:
    """The port that was typed, 8080 for none; None when it is no port."""
    whole = typed.strip() or "8080"
    return int(whole) if whole.isascii() and whole.isdigit() and 0 < int(whole[:6]) < 65536 else None
