"""Ablation: a planted part shows in its own effect alone, and chance shows in none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t

from edgekit.base.errors import ConfigError
from edgekit.evaluation.ablation import Left, Measured, Part, runs, summarize
from edgekit.evaluation.statistics import repeated_mean, student

PARTS = Part.of(["a=x.y=1", "b=x.z=2", "c=x.w=3"])
SEEDS, ROWS = 3, 400


def measured(left: Left, clean: float = 0.0) -> Measured:
    """Rows are right by chance, alike in all runs; `a` makes a fifth of the noisy ones right, `b` costs a tenth of all."""
    draw = np.random.default_rng(1)
    base: NDArray[np.float64] = (draw.random((SEEDS, ROWS)) < 0.5).astype(float)
    other = (draw.random((SEEDS, ROWS)) < 0.5).astype(float)
    noisy = np.where(np.arange(ROWS) % 5 == 0, 0.0 if "a" in left else 1.0, other)
    plain = np.where(np.arange(ROWS) % 10 == 0, 1.0 if "b" in left else 0.0, base)
    return {"clean": plain, "noise": noisy, "phrasings": base}


@pytest.mark.parametrize("grid", [False, True])
def test_each_part_has_the_effect_that_was_planted(grid: bool) -> None:
    found = summarize({left: measured(left) for left in runs(PARTS, grid=grid)}, PARTS)
    points = {one["part"]: one["points"] for one in found["effects"]}
    assert points["a"]["noise"]["points"] == pytest.approx(20)
    assert points["b"]["clean"]["points"] == pytest.approx(-10)
    for part, name in (("a", "clean"), ("b", "noise"), ("c", "clean"), ("c", "noise"), ("c", "phrasings")):
        low, high = points[part][name]["interval_95"]
        assert points[part][name]["points"] == 0 and low < 0 < high
    for part, name in (("a", "noise"), ("b", "clean")):
        low, high = points[part][name]["interval_95"]
        assert not low <= 0 <= high and low < points[part][name]["points"] < high
    assert len(found["runs"]) == (8 if grid else 4) and found["runs"][0]["left_out"] == []
    assert len(found["runs"][0]["accuracy"]["clean"]["by_seed"]) == SEEDS


def test_seeds_that_disagree_widen_the_interval_and_equal_ones_prove_little() -> None:
    rows = np.tile(np.arange(100) % 10 == 0, (3, 1)).astype(float)
    calm, wild = repeated_mean(rows), repeated_mean(rows * np.array([[0.0], [1.0], [2.0]]))
    assert wild.high - wild.low > 3 * (calm.high - calm.low)
    assert repeated_mean(rows[:1]) == calm
    assert repeated_mean(np.zeros((3, 24))).high > 0.05  # 24 rows do not show that nothing changed
    (one,) = summarize({frozenset(): {"clean": rows[:1]}}, ())["runs"]
    assert one["accuracy"]["clean"]["interval_95"] == pytest.approx([calm.low, calm.high])
    (none,) = summarize({frozenset(): {"clean": np.zeros((3, 24))}}, ())["runs"]
    low, high = none["accuracy"]["clean"]["interval_95"]
    assert low == 0 and high > 0.1  # no right answer of 24


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Differences of -1, 0 and 1 around a mean of a tenth, moved by each seed."""
    draw, hits, tries = np.random.default_rng(3), 0, 300
    for _ in range(tries):
        moved = 0.1 + 0.05 * draw.standard_normal((3, 1))
        row = draw.random((3, 60))
        values = (row < 0.3 + moved).astype(float) - (row > 0.7)
        low, high = repeated_mean(values)
        hits += low <= 0.1 <= high
    assert hits / tries >= 0.94


@pytest.mark.parametrize("degrees", range(1, 12))
def test_the_quantiles_are_students(degrees: int) -> None:
    assert student(degrees) == pytest.approx(t.ppf(0.975, degrees), rel=2e-3)


def test_parts_are_named_or_take_the_name_of_their_key() -> None:
    found = Part.of(
        ["bits=export.0.type=F16", "tune.robustness.noise=[]", "bits=quantize.calibration_rows=0"]
    )
    assert found == (
        Part("bits", ("export.0.type=F16", "quantize.calibration_rows=0")),
        Part("tune.robustness.noise", ("tune.robustness.noise=[]",)),
    )
    for wrong in ("noise", "noise=off", "=x.y=1", ""):
        with pytest.raises(ConfigError, match="names no value"):
            Part.of([wrong])


def test_a_grid_has_every_combination_and_is_limited() -> None:
    assert [sorted(left) for left in runs(PARTS, grid=False)] == [[], ["a"], ["b"], ["c"]]
    assert len(set(runs(PARTS, grid=True))) == 8
    with pytest.raises(ConfigError, match="128 runs for each seed"):
        runs(Part.of([f"{name}=x.{name}=1" for name in "abcdefg"]), grid=True)
