"""Intervals and tests against independent computations, and what they promise in repeated samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, bootstrap, multinomial

from edgekit.evaluation.statistics import (
    ONE_SIDED_95,
    TWO_SIDED_95,
    bootstrap_mean,
    clustered_share,
    drop_rate,
    mcnemar,
    mcnemar_worse,
    paired_difference,
    resampled_sums,
    wilson,
)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (270, 300), (1, 3)])
def test_the_interval_is_wilsons(correct: int, n: int) -> None:
    expected = binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
    one_sided = binomtest(correct, n).proportion_ci(0.9, method="wilson")
    assert wilson(correct, n, ONE_SIDED_95) == pytest.approx((one_sided.low, one_sided.high), abs=1e-6)


def test_nothing_is_known_without_trials() -> None:
    assert wilson(0, 0) == clustered_share([], []) == (0.0, 1.0)
    assert paired_difference(0, 0, 0) == (-1.0, 1.0)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (3, 12), (12, 3), (7, 7), (40, 60), (900, 1000)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    n = lost + won
    assert mcnemar(lost, won) == pytest.approx(binomtest(lost, n).pvalue if n else 1.0)
    one_sided = binomtest(lost, n, alternative="greater").pvalue if n else 1.0
    assert mcnemar_worse(lost, won) == pytest.approx(one_sided)


# The paired difference


def score_by_search(lost: int, won: int, n: int, difference: float) -> float:
    """The score statistic with the restricted likelihood maximised numerically."""
    same = n - lost - won
    floor = max(0.0, -difference)

    def unlikely(chance_lost: float) -> float:
        chances = (chance_lost, chance_lost + difference, 1 - 2 * chance_lost - difference)
        return -sum(
            count * math.log(max(chance, 1e-300))
            for count, chance in zip((lost, won, same), chances, strict=True)
        )

    bounds = (floor, (1 - difference) / 2)
    best = minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (won - lost - n * difference) / math.sqrt(n * (2 * best + difference * (1 - difference)))


@pytest.mark.parametrize(
    ("lost", "won", "n"), [(3, 1, 100), (10, 4, 60), (0, 5, 48), (7, 7, 300), (20, 0, 20)]
)
def test_the_paired_interval_holds_the_differences_that_the_score_test_accepts(
    lost: int, won: int, n: int
) -> None:
    low, high = paired_difference(lost, won, n)
    assert low <= (won - lost) / n <= high
    if low > -0.9999:
        assert score_by_search(lost, won, n, low) == pytest.approx(TWO_SIDED_95, abs=2e-3)
    if high < 0.9999:
        assert score_by_search(lost, won, n, high) == pytest.approx(-TWO_SIDED_95, abs=2e-3)
    assert paired_difference(won, lost, n) == pytest.approx((-high, -low))


def test_few_rows_without_a_change_show_little() -> None:
    z2 = ONE_SIDED_95**2
    for n in (3, 48, 300):
        low, high = paired_difference(0, 0, n, ONE_SIDED_95)
        assert high == pytest.approx(z2 / (n + z2), abs=1e-9) and low == -high


@pytest.mark.parametrize(("chance_lost", "chance_won"), [(0.02, 0.02), (0.1, 0.02), (0.0, 0.03), (0.3, 0.25)])
def test_the_paired_interval_holds_the_truth_in_about_19_of_20_samples(
    chance_lost: float, chance_won: float
) -> None:
    n, truth, covered = 60, chance_won - chance_lost, 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            chance = multinomial.pmf(
                [lost, won, n - lost - won], n, [chance_lost, chance_won, 1 - chance_lost - chance_won]
            )
            if chance > 1e-9:
                low, high = paired_difference(lost, won, n)
                covered += chance * (low <= truth <= high)
    assert covered >= 0.93  # a score interval is approximate: its coverage varies around 95 %


# Clusters


def test_independent_trials_in_clusters_give_wilsons_interval_and_like_ones_a_wider_one() -> None:
    assert clustered_share([10] * 20, [10] * 20) == wilson(200, 200)  # no failure: nothing shows dependence
    spread = clustered_share([9] * 20, [10] * 20)  # every cluster fails once: no wider than independent
    assert spread == pytest.approx(wilson(180, 200))
    together = clustered_share([10] * 18 + [0] * 2, [10] * 20)  # two clusters fail as a whole
    low, high = wilson(18, 20)  # twenty independent trials, not two hundred
    assert together == pytest.approx((low, high), abs=0.01)
    assert together.high - together.low > 2.5 * (spread.high - spread.low)


def test_the_bootstrap_draws_whole_clusters() -> None:
    rng = np.random.default_rng(3)
    means = rng.normal(1.0, 0.5, 40)
    values = np.repeat(means, 25) + rng.normal(0, 0.01, 1000)
    low, high = bootstrap_mean(values, np.repeat(np.arange(40), 25))
    error = means.std(ddof=1) / math.sqrt(40)
    assert high - low == pytest.approx(2 * TWO_SIDED_95 * error, rel=0.15)
    assert low < means.mean() < high
    narrow = bootstrap_mean(values, np.arange(1000))
    assert narrow.high - narrow.low < (high - low) / 3


# The drop rate


def test_the_drop_rates_interval_is_scipys_paired_bootstrap() -> None:
    rng = np.random.default_rng(5)
    clean = (rng.random(200) < 0.9).astype(float)
    noisy = np.where(rng.random(200) < 0.2, 0.0, clean)
    rate, (low, high) = drop_rate(clean, noisy)
    assert rate == pytest.approx(1 - noisy.sum() / clean.sum())
    expected = bootstrap(
        (clean, noisy), lambda c, n, axis: 1 - n.sum(axis) / c.sum(axis), paired=True, n_resamples=4000,
        method="percentile", vectorized=True, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.01)
    apart = drop_rate(clean, rng.permutation(noisy))[1]  # the same accuracies of items that are not paired
    assert apart.high - apart.low > 1.15 * (high - low)


def test_a_drop_rate_without_a_change_is_not_sure_and_without_a_right_answer_there_is_none() -> None:
    clean = np.array([1.0] * 20 + [0.0] * 20)
    rate, (low, high) = drop_rate(clean, clean)
    expected = paired_difference(0, 0, 40)
    assert rate == 0 and (low, high) == pytest.approx((2 * expected.low, 2 * expected.high))
    assert drop_rate(np.zeros(4), np.ones(4))[0] is None
    better, interval = drop_rate(clean, np.ones(40))
    assert better == -1 and interval.low < -1 < interval.high < 0


def test_one_right_answer_that_is_lost_proves_little() -> None:
    """Each resample with a right clean answer has a drop rate of 1, so the bootstrap alone would be sure."""
    rate, interval = drop_rate(np.array([1.0] + [0.0] * 5), np.zeros(6))
    assert rate == 1 == interval.high and interval.low < 0
    changed = paired_difference(1, 0, 6)
    assert interval.low == pytest.approx(-6 * changed.high)


def test_resamples_draw_whole_rows() -> None:
    values = np.arange(12.0)[:, None] * [1.0, -2.0]
    drawn = resampled_sums(values, resamples=50)
    assert drawn.shape == (50, 2) and np.allclose(drawn[:, 1], -2 * drawn[:, 0])
    assert len(set(drawn[:, 0])) > 10 and np.array_equal(drawn, resampled_sums(values, resamples=50))
