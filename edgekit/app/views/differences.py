"""Two variants, or two bundles, beside each other: their figures, and what the second has gained or lost."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.app.views.results import FIGURES, Figure, Results, Row
from edgekit.report.summary import NONE, percent


@dataclass(frozen=True)
class Difference:
    """One figure of two variants; `change` is the second's from the first's, in words."""

    name: str
    first: str
    second: str
    change: str


def differences(first: Row, second: Row) -> list[Difference]:
    """Every figure of two variants beside each other, and their gates."""
    found = []
    for each in FIGURES:
        a, b = each.of(first.variant), each.of(second.variant)
        if a is not None or b is not None:
            found.append(Difference(each.name, each.words(a), each.words(b), _change(each, a, b)))
    gates = [f"{row.state or NONE} {' '.join(row.failed)}".strip() for row in (first, second)]
    return [*found, _alike("gates", *gates)]


def _change(each: Figure, a: float | None, b: float | None) -> str:
    if a is None or b is None:
        return NONE
    if a == b:
        return "same"
    better = "better" if (b < a) == each.less_is_better else "worse"
    sign, said = "+" if b > a else "-", each.words(abs(b - a))
    if each.words is percent:
        return f"{sign}{said.replace('%', 'points')} {better}"
    share = f" ({sign}{abs(b - a) / abs(a):.0%})" if a else ""
    return f"{sign}{said}{share} {better}"


def _alike(name: str, first: str, second: str) -> Difference:
    return Difference(name, first, second, "same" if first == second else "differs")


def between(first: Results, second: Results) -> list[tuple[str, list[Difference]]]:
    """The differences of two bundles, one list for each variant that both have, what one alone has named first."""
    names = [[row.variant.name for row in results.rows] for results in (first, second)]
    alone = [
        Difference(name, *(("yes", "no") if name in names[0] else ("no", "yes")), "in one only")
        for name in dict.fromkeys([*names[0], *names[1]])
        if (name in names[0]) != (name in names[1])
    ]
    tables = [("bundle", [_alike("verdict", first.verdict, second.verdict), *alone])]
    for row in first.rows:
        if (other := second.row(row.variant.name)) is not None:
            tables.append((row.variant.name, differences(row, other)))
    return tables
