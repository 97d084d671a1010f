"""The table at the end of `edgekit eval ood`; it fits 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from edgekit.report.figures_table import figures_table
from edgekit.report.summary import percent

NAMES = {
    "max_probability": "largest probability",
    "max_score": "largest score",
    "energy": "energy",
    "abstention": "abstaining answer",
    "mahalanobis": "Mahalanobis distance",
    "knn": "nearest training row",
}
COLUMNS = ("", "AUROC", "95 %", "AUPR in", "AUPR out", "FPR95")


def ood_table(result: Mapping[str, Any]) -> Group:
    """The figures of each score of a document of schema `edgekit.ood/1`, and what thresholds on it would do."""
    scores = figures_table(*COLUMNS)
    for one in result["scores"]:
        interval = "..".join(f"{end:.3f}" for end in one["auroc_95"])
        shown = (f"{one[key]:.3f}" for key in ("aupr_in", "aupr_out", "fpr95"))
        scores.add_row(NAMES[one["name"]], f"{one['auroc']:.3f}", interval, *shown)
    quantiles = [each["quantile"] for each in result["scores"][0]["thresholds"]]
    pairs = figures_table("right / refused, %", *(f"at {quantile:.0%}" for quantile in quantiles))
    for one in result["scores"]:
        pairs.add_row(NAMES[one["name"]], *map(_pair, one["thresholds"]))
    if result["as_answered"]:
        pairs.add_row("as the model answers", _pair(result["as_answered"]))
    lines: list[RenderableType] = [scores, "", pairs, "", *map(Text, _words(result))]
    return Group(*lines)


def _pair(each: Mapping[str, Any]) -> str:
    """The right rows within the scope and the refused requests out of it."""
    return f"{100 * each['in_scope_accuracy']:.1f} / {100 * each['out_of_scope_recall']:.1f}"


def _words(result: Mapping[str, Any]) -> list[str]:
    """What was asked, as one line each."""
    found = [
        f" {result['n']:,} rows within the scope, {result['n_out_of_scope']:,} requests out of scope",
        f" At 1, 2 and 5 %: thresholds that refuse so many of {result['validation_rows']:,} validation rows",
        f" Without refusals {percent(result['accuracy'])} of the rows within the scope are right",
    ]
    if result["left_out"]:
        found.append(f" {result['left_out']:,} rows have an answer that no training row has")
    by_reason: dict[str, list[str]] = {}
    for name, why in result["not_measured"].items():
        by_reason.setdefault(why, []).append(NAMES[name])
    found += [f" Not measured: {', '.join(names)}. {why}" for why, names in by_reason.items()]
    return [*found, f" Samples: {result['samples']}"]
