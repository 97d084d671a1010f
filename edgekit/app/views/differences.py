"""Two variants, or two bundles, beside each other: their figures, and what the second has gained or lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit.app.views.results import Results, Row
from edgekit.report.summary import NONE, Variant, figure, percent


@dataclass(frozen=True)
class Difference:
    """One figure of two variants; `change` is the second's from the first's, in words."""

    name: str
    first: str
    second: str
    change: str


FIGURES: tuple[tuple[str, Callable[[Variant], float | None], Callable[[float | None], str], bool], ...] = (
    ("size, MiB", lambda one: None if one.bytes is None else one.bytes / 2**20, figure, True),
    ("bits per weight", lambda one: one.bits_per_weight, figure, True),
    ("decode, tokens/s", lambda one: one.decode, figure, False),
    ("first token, ms", lambda one: one.ttft, figure, True),
    ("peak memory, MiB", lambda one: one.speed.get("peak_rss_mib"), figure, True),
    ("right answers", lambda one: one.accuracy, percent, False),
    ("mean KLD, nats", lambda one: one.drift.get("mean_kld_nats"), figure, True),
    ("p99 KLD, nats", lambda one: one.drift.get("p99_kld_nats"), figure, True),
    ("same likeliest token", lambda one: one.drift.get("top1_agreement"), percent, False),
)


def differences(first: Row, second: Row) -> list[Difference]:
    """Every figure of two variants beside each other, and their gates."""
    found = []
    for name, of, words, less_is_better in FIGURES:
        a, b = of(first.variant), of(second.variant)
        if a is None and b is None:
            continue
        found.append(Difference(name, words(a), words(b), _change(a, b, words, less_is_better)))
    gates = [f"{row.state or NONE} {' '.join(row.failed)}".strip() for row in (first, second)]
    return [*found, Difference("gates", gates[0], gates[1], "same" if gates[0] == gates[1] else "differs")]


def _change(a: float | None, b: float | None, words: Callable[[float], str], less_is_better: bool) -> str:
    if a is None or b is None:
        return NONE
    if a == b:
        return "same"
    better = "better" if (b < a) == less_is_better else "worse"
    sign = "+" if b > a else "-"
    share = f" ({sign}{abs(b - a) / abs(a):.0%})" if a and words is figure else ""
    said = words(abs(b - a)).replace("%", "points") if words is percent else words(abs(b - a))
    return f"{sign}{said}{share} {better}"


def between(first: Results, second: Results) -> list[tuple[str, list[Difference]]]:
    """The differences of two bundles, one list for each variant that both have, what one alone has named first."""
    names = [[row.variant.name for row in results.rows] for results in (first, second)]
    alone = [
        Difference(name, *(("yes", "no") if name in names[0] else ("no", "yes")), "in one only")
        for name in dict.fromkeys([*names[0], *names[1]])
        if (name in names[0]) != (name in names[1])
    ]
    verdict = Difference("verdict", first.verdict, second.verdict, "same" if first.verdict == second.verdict else "differs")  # fmt: skip
    tables = [("bundle", [verdict, *alone])]
    for row in first.rows:
        if (other := second.row(row.variant.name)) is not None:
            tables.append((row.variant.name, differences(row, other)))
    return tables
