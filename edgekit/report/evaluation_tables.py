"""The tables at the end of `edgekit eval robust`, `calibration` and `counterfactual`; they fit 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.report.abstention import variants_lines
from edgekit.report.figures_table import figures_table
from edgekit.report.summary import NONE, figure, percent

FIGURES = {
    "calibration error, equal width": "ece",
    "calibration error, equal mass": "ece_equal_mass",
    "Brier score": "brier",
    "negative log-likelihood": "nll",
    "area under risk and coverage": "aurc",
}
COLUMNS = ("", "right", "95 %", "drop", "95 %", "changed")


def robustness_table(result: Mapping[str, Any]) -> Group:
    """One row for each variant of a document of schema `edgekit.robustness/1`, and its averages in words.

    `drop` is the performance drop rate, `changed` the share of answers that differ from those to the rows as they are.
    """
    table = figures_table(*COLUMNS)
    clean = result["clean"]
    table.add_row("as they are", percent(clean["accuracy"]), interval(clean["wilson_95"]))
    families = result["families"]
    _section(table, "noise", [one for one in families if not one["held_out"]])
    _section(table, "unseen noise", [one for one in families if one["held_out"]])
    _section(table, "unseen phrasings", result["phrasings"])
    lines: list[RenderableType] = [
        table,
        "",
        *variants_lines(result["abstention"]),
        *map(Text, _words(result)),
    ]
    return Group(*lines)


def calibration_table(result: Mapping[str, Any]) -> Group:
    """The figures of a document of schema `edgekit.calibration/1`, before and after the temperature, and the bins."""
    table = figures_table("", "as it is", f"temperature {figure(result['temperature'])}")
    before, after = result["before"], result["after"]
    for name, key in FIGURES.items():
        table.add_row(name, *(f"{one[key]:.4f}" for one in (before, after)))
    for risk in after["coverage_at_risk"]:
        shares = (one["coverage_at_risk"][risk] for one in (before, after))
        table.add_row(f"answered at {percent(float(risk))} error", *map(percent, shares))
    bins = figures_table("confidence", "right", "rows")
    for one in after["reliability"]:
        bins.add_row(percent(one["confidence"]), percent(one["accuracy"]), f"{one['n']:,}")
    known = f" {percent(after['accuracy'])} [{interval(after['wilson_95'])}] of {result['n']} rows are right, among {result['labels']} answers"
    left = f"; {result['left_out']} rows have another answer" if result["left_out"] else ""
    return Group(table, "", bins, "", Text(known + left), Text(f" Samples: {result['samples']}"))


def adversarial_table(result: Mapping[str, Any]) -> Group:
    """The figures of a document of schema `edgekit.adversarial/1`, and examples of what was found."""
    table = figures_table("", "share", "95 %", "rows")
    for name, key in (("right as they are", "clean"), ("right after the search", "attacked")):
        found = result[key]
        table.add_row(name, percent(found["accuracy"]), interval(found["wilson_95"]), f"{result['n']:,}")
    table.add_row(
        "right answers changed",
        percent(result["success"]),
        interval(result["success_95"]),
        f"{result['searched']:,}",
    )
    lines = []
    if result["searched"]:
        lines.append(
            f" Queries for each row: {result['mean_queries']:.1f} on average, at most {result['queries']}"
        )
    if result["succeeded"]:
        lines.append(f" Where an answer changed: {result['mean_queries_of_successes']:.1f}")
        lines[-1] += f", and {result['mean_words_of_successes']:.1f} words changed"
    for one in result["examples"]:
        lines += [
            "",
            f" {one['id']}: {one['attacked']}",
            f"   expected {one['expected']}",
            f"   answered {one['answer']}",
        ]
    return Group(table, "", *map(Text, [*lines, "", f" Samples: {result['samples']}"]))


def counterfactual_table(result: Mapping[str, Any]) -> Group:
    """The figures of a document of schema `edgekit.counterfactual/1`, and answers that changed."""
    table = figures_table("", "changed", "95 %", "rows", "lost", "won")
    for one in (*result["kinds"], {"about": "all", **result["all"]}):
        share = (percent(one["changed"]), interval(one["changed_95"]) if one["n"] else NONE)
        table.add_row(one["about"], *share, *(f"{one[key]:,}" for key in ("n", "lost", "won")))
    lines = [f" {result['asked']} of {result['n']} rows have such words; lost and won are right answers"]
    for one in result["examples"]:
        swaps = ", ".join(f"{before} → {after}" for before, after in one["swaps"])
        lines += ["", f" {one['id']}: {swaps}", f"   before {one['before']}", f"   after  {one['answer']}"]
    return Group(table, "", *map(Text, [*lines, "", f" Samples: {result['samples']}"]))


def _section(table: Table, title: str, variants: Sequence[Mapping[str, Any]]) -> None:
    if variants:
        table.add_row(Text(title, "dim"))
    for one in variants:
        table.add_row(
            f"  {one['name']}",
            percent(one["accuracy"]),
            interval(one["wilson_95"]),
            percent(one["pdr"]),
            interval(one["pdr_95"]),
            percent(one["changed"]),
        )


def _words(result: Mapping[str, Any]) -> list[str]:
    """The averages, as one line each."""
    found = []
    for key, what in (("seen", "noise that robust tuning uses"), ("held_out", "unseen noise")):
        mean = result[key]
        if mean:
            found.append(
                f" Mean drop, {what}: {percent(mean['pdr'])} [{interval(mean['pdr_95'])}] in {mean['families']} families"
            )
    worst = max([*result["families"], *result["phrasings"]], key=lambda one: one["pdr"] or 0.0, default=None)
    if worst and worst["pdr"]:
        found.append(f" Largest drop: {percent(worst['pdr'])}, {worst['name']}")
    spread = result["template_spread"]
    found.append(
        f" Spread over {spread['phrasings']} phrasings: {100 * spread['spread']:.1f} points"
        f" [{interval(spread['bootstrap_95'])}]"
    )
    always, alike = result["worst_case"]["all"]["accuracy"], result["consistency"]["all"]["share"]
    found.append(
        f" Right in every variant: {percent(always)} of {result['n']} items; answered alike: {percent(alike)}"
    )
    return [*found, f" Samples: {result['samples']}"]


def interval(ends: Sequence[float] | None) -> str:
    """Both ends in percent; a dash where there is no interval."""
    return NONE if ends is None else f"{100 * ends[0]:.1f}..{100 * ends[1]:.1f}"
