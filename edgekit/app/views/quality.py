"""What was measured of a variant's answers, as lines: where it fails, what noise costs it, whether its confidence can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.app.views.lines import Line
from edgekit.app.views.symbols import Symbols
from edgekit.base.texts import one_line
from edgekit.report import confidence, robustness
from edgekit.report.failures import MOST, NAMES
from edgekit.report.summary import Variant, percent

BAR = 24  # cells of a bar
WIDEST = 24  # cells of a class or an answer


def quality(one: Variant) -> list[Line]:
    """All of it; nothing of what was not measured."""
    return [
        *failure_lines(one.failures),
        *robustness_lines(one.robustness),
        *confidence_lines(one.calibration),
    ]


def failure_lines(found: Mapping[str, Any]) -> list[Line]:
    """The classes with wrong answers, the surest failure first, and what is answered instead."""
    if not found:
        return []
    classes = found["classes"]
    if not classes:
        return [("head", "where it fails: no answer to a test row is wrong")]
    names = [one_line(one["label"], WIDEST) for one in classes[:MOST]]
    longest = max(map(len, names))
    lines: list[Line] = [
        ("head", f"where it fails: right answers by {NAMES[found['by']]}, the surest failure first")
    ]
    for name, one in zip(names, classes, strict=False):
        told = f"{name:<{longest}} {percent(one['accuracy']):>7}  {one['n'] - one['wrong']} of {one['n']}"
        if said := one["instead"]:
            told += f", {said['n']} × {one_line(said['answer'], WIDEST) or '(empty)'} instead"
        lines.append(("fact", f"{told}, new" if one["new"] else told))
    if len(classes) > MOST:
        lines.append(("more", f"and {len(classes) - MOST} more"))
    if any(one["new"] for one in classes[:MOST]):
        lines.append(("more", "new: the tuned model answers all of these rows rightly"))
    return lines


def robustness_lines(found: Mapping[str, Any]) -> list[Line]:
    """A bar of right answers for each variant of the rows, how often it abstains, and the rows that fail in the most variants."""
    if not found:
        return []
    bars = [("clean", found["clean"]["accuracy"])]
    bars += [(one["name"], one["accuracy"]) for one in robustness.variants(found)]
    longest = max(len(name) for name, _ in bars)
    lines: list[Line] = [("head", f"noise and other phrasings: right answers on {found['n']} test rows")]
    lines += [
        ("fact", f"{name:<{longest}} {Symbols.bar(share, BAR)} {percent(share)}") for name, share in bars
    ]
    if found["worst_case"] and found["consistency"]:
        always, alike = found["worst_case"]["all"]["accuracy"], found["consistency"]["all"]["share"]
        lines.append(
            (
                "fact",
                f"right in every variant {percent(always)}, same answer in every variant {percent(alike)}",
            )
        )
    for name, one in robustness.abstention(found).items():
        lines.append(("fact", f"{name}: {percent(one['share'])}, {one['hits']} of {one['n']}"))
    return lines + [("more", sentence) for sentence in robustness.sentences(found["worst_rows"])]


def confidence_lines(found: Mapping[str, Any]) -> list[Line]:
    """The figures of a calibration, or why there is none."""
    if found.get("refused"):
        return [("head", "confidence: not calibrated"), ("fact", found["refused"])]
    if not confidence.is_measured(found):
        return []
    head = f"confidence, on the {found['rows']} validation rows that its temperature was fitted on"
    return [("head", head), *(("fact", f"{name}: {value}") for name, value in confidence.rows(found))]
