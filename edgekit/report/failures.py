"""Where the models of a build fail, as rows of a table and in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.base.texts import one_line

MOST = 8  # rows of a table
NAMED = 2  # classes in one line
NAMES = {"label": "label", "answer": "expected answer", "words": "words of the expected answer"}


def table(report: Mapping[str, Any]) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    """At most eight classes with what each model makes of them, the surest failure of any model first.

    None stands for a model that answers every row of the class rightly.
    """
    models = [
        {one["label"]: one for one in found["classes"]} for found in (report.get("failures") or {}).values()
    ]
    highest: dict[str, float] = {}
    for classes in models:
        for label, one in classes.items():
            highest[label] = min(highest.get(label, 1.0), one["wilson_95"][1])
    worst = sorted(highest, key=lambda label: (highest[label], label))[:MOST]
    return [(label, [classes.get(label) for classes in models]) for label in worst]


def what(report: Mapping[str, Any]) -> str:
    """What a class is, as the head of a column: `label`, `expected answer` or `words of the expected answer`."""
    return next((NAMES[found["by"]] for found in (report.get("failures") or {}).values()), "")


def short(report: Mapping[str, Any]) -> list[str]:
    """One line for each model: its worst classes, each with its right answers and what is answered instead."""
    return [
        f"{name}: {told}" for name, found in (report.get("failures") or {}).items() if (told := _line(found))
    ]


def _line(found: Mapping[str, Any]) -> str:
    classes = found["classes"]
    told = ", ".join(_class(found["by"], one) for one in classes[:NAMED])
    more = len(classes) - NAMED
    return f"{told}, and {more} more" if more > 0 else told


def _class(by: str, one: Mapping[str, Any]) -> str:
    """One class: its right answers, and what is answered instead; a file's that the tuned model does not fail is new."""
    name = f"answers of {one['label']} words" if by == "words" else one_line(one["label"], 40)
    notes = ["new"] if one.get("new") else []
    if said := one["instead"]:
        notes.append(f"{one_line(said['answer'], 40) or 'nothing'} instead")
    return f"{name} {one['n'] - one['wrong']} of {one['n']}" + (f" ({', '.join(notes)})" if notes else "")
