"""Abstentions by hand: within the scope, out of it, and how many are right."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType

from edgekit.evaluation.abstention import abstention
from edgekit.evaluation.statistics import wilson
from edgekit.report.abstention import abstention_lines, variants_lines


def sample(id_: int, expected: str, answer: str, label: str | None = None) -> dict[str, Any]:
    return {"id": str(id_), "label": label, "expected": expected, "answer": answer}


def terminal(lines: list[RenderableType]) -> str:
    console = Console(width=80, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(Group(*lines))
    return captured.get().replace("\N{NO-BREAK SPACE}", " ")


def test_each_share_has_its_rows_and_its_interval() -> None:
    samples = [sample(n, "pay", "none of these" if n < 2 else "pay") for n in range(10)]
    samples += [sample(n, "none of these", "none of these" if n < 13 else "pay") for n in range(10, 14)]
    samples.append(sample(14, "whatever", "none of these", "oos"))  # out of scope by its label
    found = abstention(samples, " none of these\n")
    assert found and found["answer"] == "none of these"
    shares = {name: (one["hits"], one["n"]) for name, one in found.items() if name != "answer"}
    assert shares == {"false_abstentions": (2, 10), "recall": (4, 5), "precision": (4, 6)}
    assert found["recall"]["share"] == 0.8 and found["recall"]["wilson_95"] == list(wilson(4, 5))
    told = terminal(abstention_lines({"all rows": found}))
    assert "all rows 20.0 % (2 of 10) 80.0 % (4 of 5) 66.7 % (4 of 6)" in " ".join(told.split())
    assert max(map(len, told.splitlines())) <= 80


def test_the_variants_are_rows_of_the_table_and_a_share_without_rows_is_a_dash() -> None:
    in_scope, both = [sample(1, "pay", "pay")], [sample(1, "pay", "none"), sample(2, "none", "none")]
    figures = {
        name: abstention(rows, "none")
        for name, rows in (("clean", in_scope), ("noise", both), ("phrasings", both))
    }
    told = " ".join(terminal(variants_lines(figures)).split())
    assert "as they are 0.0 % (0 of 1) – –" in told
    assert "with noise 100.0 % (1 of 1) 100.0 % (1 of 1) 50.0 % (1 of 2)" in told
    assert variants_lines(None) == []


def test_the_variants_of_one_row_are_a_cluster() -> None:
    """Two rows that abstain in all of ten variants say less than twenty rows of a hundred that do."""
    samples = [sample(n, "pay", "none" if n < 2 else "pay") for n in range(10) for _ in range(10)]
    found = abstention(samples, "none")
    assert found and found["false_abstentions"]["share"] == 0.2
    low, high = found["false_abstentions"]["wilson_95"]
    assert low < wilson(20, 100).low - 0.05 and high > wilson(20, 100).high + 0.05


def test_without_such_an_answer_or_such_rows_nothing_is_said() -> None:
    samples = [sample(n, "pay", "pay") for n in range(3)]
    assert abstention(samples, "") is None and abstention_lines({"x": None}) == []
    found = abstention(samples, "out_of_scope")
    assert found and found["recall"]["share"] is None and found["precision"]["share"] is None
    assert found["false_abstentions"]["share"] == 0 and abstention_lines({"x": found}) == []
