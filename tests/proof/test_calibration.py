"""The bins of the reliability diagram hold each answer once."""

from __future__ import annotations

import pytest

from edgekit.proof.calibration import binned


def test_bins_hold_each_answer_once_the_least_sure_first() -> None:
    sure = [(at / 100, at % 3 == 0) for at in range(100)]
    bins = binned(sure)
    assert [each.n for each in bins] == [10] * 10
    assert [each.confidence for each in bins] == sorted(each.confidence for each in bins)
    assert sum(each.accuracy * each.n for each in bins) == pytest.approx(34)
    assert binned([]) == [] and len(binned([(0.5, True)])) == 1
