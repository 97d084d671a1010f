"""Where a build writes, and paths as they are typed: looked at, bounded, before anything is started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit.app.views.wizard import Choice, Finding, at_home
from edgekit.base.errors import EdgekitError

MOST_ENTRIES = 2000  # of a folder, looked at for a suggestion
MOST_NAMES = 100


@dataclass(frozen=True)
class Place:
    """What is at the output folder; `other` is a free name near it when it is taken."""

    finding: Finding
    other: str = ""


def look_at_place(choice: Choice) -> Place:
    """What the build will find at its output folder; reads the model's file when an earlier bundle is there."""
    out = choice.place
    try:
        near = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        if not near.is_dir() or not os.access(near, os.W_OK | os.X_OK):
            return Place(
                Finding(
                    "FAILED", (), f"{near} is not a folder that can be written.", "Choose another folder."
                )
            )
        if near != out:
            return Place(Finding("OK", (f"{out} is new.",)))
    except (OSError, ValueError) as error:
        return Place(Finding("FAILED", (), f"{out} cannot be read: {error}.", "Choose another folder."))
    from edgekit.build.bundle import check_free

    try:
        check_free(replace(choice.order, out=out).request())
    except EdgekitError as error:
        return Place(Finding("FAILED", (), error.message, error.hint), _free_name(out))
    return Place(
        Finding("OK", (f"{out} holds a bundle of the same model, data and target; the new one replaces it.",))
    )


def _free_name(out: Path) -> str:
    names = (out.with_name(f"{out.name}-{number}") for number in range(2, MOST_NAMES))
    return next((str(path) for path in names if not path.exists()), "")


def suggest(text: str, names: Sequence[str], suffix: str | tuple[str, ...]) -> str | None:
    """How `text` may go on: one of `names`, a folder, or a file that ends with `suffix`."""
    if not text:
        return None
    if named := next((name for name in names if name.startswith(text)), None):
        return named
    folder, _, start = text.rpartition("/")
    base = at_home(folder) if folder else ("/" if text.startswith("/") else ".")
    try:
        with os.scandir(base) as entries:
            found = sorted(
                entry.name + ("/" if entry.is_dir() else "")
                for _, entry in zip(range(MOST_ENTRIES), entries, strict=False)
                if entry.name.startswith(start) and (start or not entry.name.startswith("."))
                and (entry.is_dir() or entry.name.endswith(suffix))
            )  # fmt: skip
    except OSError:
        return None
    return text[: len(text) - len(start)] + found[0] if found else None
