"""One function decides whether a model is as good: within a margin, shown by the rows, or neither."""

from __future__ import annotations

import pytest

from edgekit.evaluation.noninferiority import judge, rows_needed, slice_is_worse


@pytest.mark.parametrize(
    ("lost", "won", "n", "verdict"),
    [
        (0, 0, 133, "as good"),
        (0, 0, 132, "unproven"),
        (3, 0, 300, "unproven"),  # one point lost, and four are possible
        (7, 0, 300, "worse"),
        (0, 9, 300, "as good"),
        (6, 0, 300, "unproven"),  # exactly the margin
        (0, 0, 0, "unproven"),
    ],
)
def test_a_margin_of_two_points(lost: int, won: int, n: int, verdict: str) -> None:
    found = judge(lost, won, n, 2.0)
    assert found.verdict == verdict and found.low <= found.points <= found.high


def test_the_bound_may_be_wider_than_the_margin_and_never_hides_a_larger_loss() -> None:
    assert judge(3, 0, 300, 2.0, 4.0).shown and judge(7, 0, 300, 2.0, 50.0).verdict == "worse"


def test_the_rows_that_are_needed_suffice_and_one_less_does_not() -> None:
    assert rows_needed(0.0, 0.0) == 133
    needed = rows_needed(0.01, 0.01)
    assert judge(0.01 * needed, 0.01 * needed, needed, 2.0).shown
    assert not judge(0.01 * (needed - 1), 0.01 * (needed - 1), needed - 1, 2.0).shown
    assert rows_needed(0.03, 0.0) == 0


@pytest.mark.parametrize(
    ("lost", "won", "n", "slices", "worse"),
    [
        (6, 0, 40, 3, True),
        (2, 0, 40, 3, False),  # two of two losses are chance
        (6, 0, 40, 10, False),  # the worst of ten slices may lose so many by chance
        (6, 0, 400, 3, False),  # within the margin
        (0, 6, 40, 3, False),
    ],
)
def test_only_a_slice_that_is_shown_to_be_worse_is_named(
    lost: int, won: int, n: int, slices: int, worse: bool
) -> None:
    assert slice_is_worse(lost, won, 100 * (won - lost) / n, 2.0, slices) is worse
