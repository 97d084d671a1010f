"""Gates: a clean file passes all of them, and every planted fault is caught by the gate that is named for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from edgekit.base.events import GateResult
from edgekit.evaluation.compare import Change
from edgekit.proof import gates
from edgekit.proof.drift import Drift, Scored
from edgekit.targets.target import Budget

BUDGET = Budget(mean_kld_nats=0.05, p99_kld_nats=1.0, top1_agreement=0.95, accuracy_drop_points=2.0)


SAME = Drift(0.0, 0.0, 1.0, 100)


@pytest.mark.parametrize(
    ("measured", "names"),
    [
        (Drift(0.05, 1.0, 0.95, 100), []),
        (Drift(0.051, 1.0, 0.95, 100), ["gguf.mean_kld_nats"]),
        (Drift(0.05, 1.1, 0.95, 100), ["gguf.p99_kld_nats"]),
        (Drift(0.05, 1.0, 0.949, 100), ["gguf.top1_agreement"]),
        (
            Drift(float("nan"), float("inf"), float("nan"), 100),
            ["gguf.mean_kld_nats", "gguf.p99_kld_nats", "gguf.top1_agreement"],
        ),
    ],
)
def test_drift_past_its_budget_fails_by_name(measured: Drift, names: list[str]) -> None:
    found = gates.drift(measured, SAME, None, BUDGET, "gguf", "quantize.gguf")
    assert [gate.name for gate in found if not gate.passed] == names
    assert {gate.stage for gate in found} == {"quantize.gguf"}
    assert [gate.limit for gate in found] == [0.05, 1.0, 0.95, 0.98]


def test_bounds_decide_too_and_are_told() -> None:
    def judged(**bounds: tuple[float, float]) -> dict[str, GateResult]:
        found = gates.drift(replace(SAME, **bounds), SAME, None, BUDGET, "gguf", "s")
        return {gate.name: gate for gate in found}

    just = judged(mean_kld_bounds=(0.0, 0.1), top1_bounds=(0.9, 1.0))
    assert all(gate.passed for gate in just.values())
    assert (just["gguf.mean_kld_nats"].low, just["gguf.mean_kld_nats"].high) == (0.0, 0.1)
    assert just["gguf.top1_agreement"].n == 100
    beyond = judged(mean_kld_bounds=(0.0, 0.101), top1_bounds=(0.899, 1.0))
    assert not beyond["gguf.mean_kld_nats"].passed and not beyond["gguf.top1_agreement"].passed
    assert "the upper bound is 0.101, above 0.1" in beyond["gguf.mean_kld_nats"].detail
    assert "the lower bound is 0.899, below 0.9" in beyond["gguf.top1_agreement"].detail


@pytest.mark.parametrize(("agreement", "passed"), [(0.98, True), (0.979, False), (float("nan"), False)])
def test_answers_have_a_gate_of_their_own(agreement: float, passed: bool) -> None:
    gate = gates.drift(SAME, Drift(0.0, 0.0, agreement, 50), None, BUDGET, "onnx", "export.onnx")[-1]
    assert gate.name == "onnx.answer_top1_agreement" and gate.passed is passed


@pytest.mark.parametrize(("mean", "passed"), [(0.15, True), (0.151, False)])
def test_plain_text_has_a_gate_of_its_own(mean: float, passed: bool) -> None:
    text = Drift(mean, 0.3, 0.9, 700)
    found = {gate.name: gate for gate in gates.drift(SAME, SAME, text, BUDGET, "gguf", "quantize.gguf")}
    refused = [] if passed else ["gguf.text_mean_kld_nats"]
    assert [name for name, gate in found.items() if not gate.passed] == refused
    assert "700 positions of plain text" in found["gguf.text_mean_kld_nats"].detail


def change(n: int, lost: int, won: int = 0, right: int | None = None) -> Change:
    before = n - won if right is None else right
    return Change(n, before, before - lost + won, tuple(map(str, range(lost))), tuple(map(str, range(won))))


@pytest.mark.parametrize(
    ("changed", "passed"),
    [
        (change(300, 6, 0, 288), True),  # two points are a little more in binary
        (change(300, 7, 0, 288), False),
        (change(300, 0, 12), True),
        (change(300, 7, 1, 290), True),
        (change(300, 30, 24, 270), False),  # two points as well, but so many changed that six are possible
        (change(66, 0), True),
        (change(64, 0), False),  # too few rows to show a drop of at most four points
        (change(0, 0), False),
    ],
)
def test_accuracy_may_fall_by_the_budget_and_no_more(changed: Change, passed: bool) -> None:
    gate = gates.accuracy_drop(changed, BUDGET, "gguf", "s")
    assert gate.passed is passed and gate.name == "gguf.accuracy_drop_points"
    assert gate.n == changed.n and gate.low is not None and gate.high is not None
    if changed.n:
        assert gate.value == pytest.approx(100 * (len(changed.lost) - len(changed.won)) / changed.n)
        assert gate.low <= gate.value <= gate.high
    small = gate.value <= 2.0 and not passed
    assert ("too small to prove" in gate.detail) is small


def test_no_drop_at_all_can_be_asked_for() -> None:
    budget = Budget(accuracy_drop_points=0.0)
    assert gates.accuracy_drop(change(300, 0), budget, "gguf", "s").passed
    assert not gates.accuracy_drop(change(300, 1), budget, "gguf", "s").passed


def test_a_loss_in_one_variant_alone_fails_and_is_named() -> None:
    same, limit = change(300, 0), 2.0
    gate = gates.robust_drop({"clean": same, "ocr": change(300, 1), "case": same}, limit, "gguf", "s")
    assert gate.passed and gate.name == "gguf.robust_drop_points" and gate.detail.startswith("ocr: ")
    gate = gates.robust_drop({"clean": same, "ocr": change(300, 7), "case": same}, limit, "gguf", "s")
    assert not gate.passed and gate.detail.startswith("ocr: ") and gate.value == pytest.approx(7 / 3)


@pytest.mark.parametrize(("limit", "passed"), [(5.9, False), (6.0, True)])
def test_a_few_rows_never_show_that_a_limit_under_noise_is_kept(limit: float, passed: bool) -> None:
    """20 rows without a change could still hide a loss of 12 points."""
    gate = gates.robust_drop({"clean": change(20, 0), "case": change(20, 0)}, limit, "gguf", "s")
    assert gate.passed is passed and ("too small to prove" in gate.detail) is not passed


@pytest.mark.parametrize(
    ("rate", "bounds", "passed"),
    [(0.2, [0.1, 0.39], True), (0.2, [0.1, 0.41], False), (0.21, [0.2, 0.22], False), (None, None, False)],
)
def test_the_mean_drop_rate_under_noise_has_a_limit(
    rate: float | None, bounds: list[float] | None, passed: bool
) -> None:
    noise = {"families": 5, "pdr": rate, "pdr_bounds": bounds}
    gate = gates.drop_rate(noise, 24, 0.2, "gguf", "tune")
    assert gate.passed is passed and gate.name == "gguf.robust_drop_rate" and gate.n == 24


@pytest.mark.parametrize(
    ("changed", "passed"),
    [
        (change(300, 10, 200, 20), True),
        (change(20, 0, 3, 0), True),
        (change(20, 0, 2, 0), False),  # a gain that chance explains
        (change(300, 30, 40, 150), False),
        (change(300, 0, 0, 0), False),  # nothing learned
        (change(300, 40, 10, 150), False),
        (change(0, 0), False),
    ],
)
def test_tuned_must_be_shown_to_beat_the_base(changed: Change, passed: bool) -> None:
    gate = gates.accuracy_gain(changed, "with 8 examples", BUDGET)
    assert (gate.name, gate.stage, gate.limit) == ("tune.accuracy_gain_points", "tune", 0.0)
    assert gate.passed is passed and "compared with the base with 8 examples" in gate.detail
    assert gates.accuracy_gain(changed, "", Budget(accuracy_gain_points=-100)).passed is (changed.n > 0)


def test_a_larger_gain_can_be_asked_for() -> None:
    found = change(300, 0, 60, 100)
    assert gates.accuracy_gain(found, "", Budget(accuracy_gain_points=16)).passed
    assert not gates.accuracy_gain(found, "", Budget(accuracy_gain_points=18)).passed


def test_sizes_times_and_speeds_are_held_exactly() -> None:
    assert gates.size(100 * 2**20, 100.0, "gguf", "s").passed
    over = gates.size(100 * 2**20 + 1, 100.0, "gguf", "s")
    assert not over.passed and over.name == "gguf.size_mib" and over.value == pytest.approx(100.0)
    for gate, name in (
        (gates.peak_rss, "peak_rss_mib"),
        (gates.ttft, "ttft_ms"),
    ):
        assert gate(300.0, 300.0, "onnx", "s").passed
        found = gate(300.1, 300.0, "onnx", "s")
        assert not found.passed and (found.name, found.value) == (f"onnx.{name}", 300.1)
    assert gates.decode_speed(10.0, 10.0, "onnx", "s").passed
    assert not gates.decode_speed(9.9, 10.0, "onnx", "s").passed


def scored(expected: list[int], got: list[int], length: int) -> Scored:
    """Answers of `length` positions each."""
    place = np.arange(len(expected))
    return Scored(
        np.zeros(len(place)),
        np.array(expected, np.int32),
        np.array(got, np.int32),
        place // length,
        place % length,
    )


STOP = frozenset({2, 9})


def stopping(faults: Sequence[tuple[int, int]], count: int) -> GateResult:
    """`count` answers of three positions, of which the file chooses other tokens at `faults`: position and token."""
    expected = [5, 6, 2] * count
    got = list(expected)
    for position, token in faults:
        got[position] = token
    return gates.stop_contract(
        scored(expected, got, 3), np.ones(3 * count, bool), STOP, Budget(), "gguf", "export.gguf"
    )


def test_the_stop_contract_counts_answers_that_end_too_late_or_too_early() -> None:
    same = stopping([], 48)
    assert (
        same.passed
        and same.value == 1.0
        and same.detail == "48 of 48 reference answers end with a stop token"
    )
    assert (same.n, same.high) == (48, 1.0) and same.low == pytest.approx(48 / (48 + 2.7055), abs=1e-4)
    worse = stopping([(2, 5), (3, 2), (4, 2), (8, 9)], 48)
    assert not worse.passed and worse.value == pytest.approx(45 / 48)
    assert (
        "missed stops: 2, early stops: 2" in worse.detail
    )  # the second answer is one, however often it stops
    other_word = stopping([(0, 7)], 48)
    assert other_word.value == 1.0  # another token that is no stop is another gate's business


@pytest.mark.parametrize(
    ("wrong", "count", "passed"),
    [
        (0, 25, True),
        (0, 24, False),
        (1, 48, True),
        (2, 48, False),
        (5, 100, True),
        (6, 100, False),
        (50, 1000, True),
        (51, 1000, False),
    ],
)
def test_the_stop_contract_next_to_its_limit(wrong: int, count: int, passed: bool) -> None:
    found = stopping([(3 * answer + 2, 5) for answer in range(wrong)], count)
    assert found.passed is passed and found.limit == 0.95
    assert ("too small to prove" in found.detail) is (not passed and found.value >= 0.95)


def test_where_the_reference_never_stops_the_file_must_not_stop_either() -> None:
    never = scored([5] * 90, [6] * 90, 3)
    gate = gates.stop_contract(never, np.ones(90, bool), STOP, Budget(), "f", "s")
    assert gate.passed and gate.detail == "0 of 30 reference answers end with a stop token"
    early = scored([5] * 90, [2] * 90, 3)
    assert gates.stop_contract(early, np.ones(90, bool), STOP, Budget(), "f", "s").value == 0


def test_greedy_agreement_is_what_comes_out_before_two_answers_part() -> None:
    expected, got = [5, 5, 5, 2, 7, 6, 6, 6, 6], [1, 5, 5, 2, 1, 6, 8, 6, 1]
    found = replace(scored(expected, got, 9), sequence=np.array([0] * 5 + [1] * 4))
    answers, stops = np.array([False] + [True] * 8), frozenset({2})
    gate = gates.greedy_agreement(found, answers, stops, Budget(greedy_agreement=0.6), "f", "s")
    # the first answer is the same up to its end, what stands after it is none; the second parts after one of four
    assert gate.value == (1.0 + 0.25) / 2 and gate.detail.startswith("1 of 2 answers")
    assert gate.n == 2 and gate.low is not None and gate.low < 0.3


@pytest.mark.parametrize(
    ("apart", "count", "passed"),
    [(0, 11, True), (0, 10, False), (4, 48, True), (5, 48, False), (100, 1000, True), (101, 1000, False)],
)
def test_greedy_agreement_next_to_its_limit(apart: int, count: int, passed: bool) -> None:
    expected = [5, 6, 2] * count
    got = [token + (n < 3 * apart and n % 3 == 0) for n, token in enumerate(expected)]
    gate = gates.greedy_agreement(
        scored(expected, got, 3), np.ones(3 * count, bool), STOP, Budget(), "f", "s"
    )
    assert gate.value == pytest.approx(1 - apart / count) and gate.passed is passed, gate
