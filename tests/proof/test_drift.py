"""Drift: the divergence against an oracle, the compact reference against the full sum, faults in a candidate."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runtime import FakeRuntime, bigram
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import log_softmax, rel_entr, softmax

from edgekit.base.errors import ConfigError, CorruptError, StageError
from edgekit.base.events import Event, Progress
from edgekit.evaluation.statistics import bootstrap_mean
from edgekit.proof.drift import Reference, Scored, _mean_kl, capture, kl_divergence, score

V = 4096
SEQUENCES = [np.random.default_rng(n).integers(0, 300, 40).tolist() for n in range(8)]
FIRST = [0, *[5] * 7]
LOGITS = arrays(np.float32, (2, 3, 17), elements=st.floats(-60, 60, width=32))


@pytest.fixture(scope="module")
def model() -> FakeRuntime:
    return FakeRuntime(table=bigram(V, rows=300))


@pytest.fixture(scope="module")
def reference(model: FakeRuntime) -> Reference:
    return capture(model, SEQUENCES, FIRST)


def noisy(model: FakeRuntime, scale: float) -> FakeRuntime:
    noise = np.random.default_rng(9).standard_normal(model.table.shape).astype(np.float32)
    return model.but(table=model.table + scale * noise)


def in_full(model: FakeRuntime, candidate: FakeRuntime) -> NDArray[np.float64]:
    rows = [token for ids, first in zip(SEQUENCES, FIRST, strict=True) for token in ids[first:]]
    return kl_divergence(model.logits(rows), candidate.logits(rows))


# The divergence


def test_kl_divergence_equals_scipys_relative_entropy() -> None:
    p, q = bigram(V, 20, seed=1), 2 * bigram(V, 20, seed=2)
    expected = rel_entr(softmax(p.astype(float), axis=1), softmax(q.astype(float), axis=1)).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(p, q), expected, rtol=1e-10)


@settings(max_examples=50, deadline=None)  # a loaded machine is no failure
@given(LOGITS)
def test_kl_divergence_is_never_negative_and_does_not_see_a_shift(logits: NDArray[np.float32]) -> None:
    p, q = logits
    found = kl_divergence(p, q)
    assert np.all(found >= 0) and np.all(np.isfinite(found))
    np.testing.assert_allclose(found, kl_divergence(p + 8, q - 8), atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(LOGITS)
def test_kl_divergence_of_equal_distributions_is_zero(logits: NDArray[np.float32]) -> None:
    assert np.all(kl_divergence(logits[0], logits[0]) == 0)


def test_kl_divergence_has_a_direction_and_a_known_value() -> None:
    p, q = np.log([[0.5, 0.5]]), np.log([[0.9, 0.1]])
    assert kl_divergence(p, q)[0] == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))
    assert kl_divergence(q, p)[0] == pytest.approx(0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5))


def test_masked_entries_give_no_nan() -> None:
    p = np.array([[0.0, 1.0, -np.inf]])
    assert kl_divergence(p, p)[0] == 0
    assert kl_divergence(p, p + [[0, 1, 0]])[0] > 0.01
    assert 10 < kl_divergence(np.zeros((1, 3)), p)[0] < 100


def test_padding_of_the_vocabulary_has_no_part() -> None:
    p, q = bigram(V, 5, seed=1), bigram(V, 5, seed=2)
    padded = np.pad(q, ((0, 0), (0, 64)), constant_values=3.0)
    np.testing.assert_array_equal(kl_divergence(p, padded), kl_divergence(p, q))


# The compact reference


@pytest.mark.parametrize("scale", [0.02, 0.2, 0.7, 2.0, 4.0])
def test_the_compact_reference_agrees_with_the_full_sum_within_one_percent(
    model: FakeRuntime, reference: Reference, scale: float
) -> None:
    candidate = noisy(model, scale)
    full = in_full(model, candidate)
    found = score(candidate, reference)
    assert reference.tail.mean() > 0.1  # else there is nothing to estimate
    assert found.drift.mean_kld_nats == pytest.approx(full.mean(), rel=0.01)
    assert found.drift.p99_kld_nats == pytest.approx(np.percentile(full, 99), rel=0.15)
    np.testing.assert_allclose(found.klds, full, rtol=0.5 if scale < 1 else 0.25)


def estimates(controlled: Callable[[NDArray[np.float64]], bool], draws: int = 40_000) -> NDArray[np.float64]:
    """Many estimates of one divergence, each from 6 tokens drawn from P; the true value is taken off."""
    rng = np.random.default_rng(5)
    logp = log_softmax(rng.normal(0, 1, 400))
    logq = log_softmax(logp + rng.normal(0, 1.1, 400))  # where the choice of the estimator is close
    ratios = (logq - logp)[rng.choice(400, (draws, 6), p=np.exp(logp))]
    return (
        np.array([_mean_kl(row, controlled(row)) for row in ratios])
        - rel_entr(np.exp(logp), np.exp(logq)).sum()
    )


@pytest.mark.parametrize("controlled", [True, False])
def test_the_estimate_has_no_bias_with_or_without_the_control_variate(controlled: bool) -> None:
    found = estimates(lambda _: controlled)
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(len(found))


def test_a_choice_by_the_drawn_tokens_would_bias_it() -> None:
    found = estimates(lambda row: bool(row.var() < 1.25))
    assert abs(found.mean()) > 8 * found.std() / np.sqrt(len(found))


@pytest.mark.parametrize("scale", [0.8, 1.1, 1.5])
def test_a_stored_reference_gives_the_divergence_without_bias(model: FakeRuntime, scale: float) -> None:
    candidate, position = noisy(model, scale), SEQUENCES[0][:1]
    truth = kl_divergence(model.logits(position), candidate.logits(position))[0]
    many = capture(
        model, [position * 1500], [0], head=16, samples=4
    )  # one sequence, 1500 draws of the same tail
    found = score(candidate, many).klds
    assert abs(found.mean() - truth) < 4 * found.std(ddof=1) / np.sqrt(len(found))


def test_a_vocabulary_inside_the_head_is_exact() -> None:
    model = FakeRuntime(table=bigram(200, rows=300))
    candidate = noisy(model, 0.5)
    reference = capture(model, [[5, 6, 7]], [0])
    np.testing.assert_allclose(
        score(candidate, reference).klds,
        kl_divergence(model.logits([5, 6, 7]), candidate.logits([5, 6, 7])),
        rtol=1e-5,
    )


def test_the_model_itself_has_no_drift(model: FakeRuntime, reference: Reference) -> None:
    drift = score(model, reference).drift
    assert asdict(drift) == {
        "mean_kld_nats": pytest.approx(0, abs=1e-10),
        "p99_kld_nats": pytest.approx(0, abs=1e-10),
        "top1_agreement": 1.0,
        "n_tokens": 8 * 40 - 7 * 5,
        "mean_kld_95": pytest.approx((0, 0), abs=1e-10),
        "mean_kld_bounds": pytest.approx((0, 0), abs=1e-10),
        "top1_bounds": pytest.approx((1 - 2.7055 / (285 + 2.7055), 1.0), abs=1e-4),
    }


@settings(max_examples=50, deadline=None)
@given(arrays(np.float32, (2, 1, 30), elements=st.floats(-40, 40, width=32)))
def test_a_compact_divergence_is_finite_and_not_negative(logits: NDArray[np.float32]) -> None:
    reference = capture(FakeRuntime(table=logits[0]), [[0]], [0], head=4, samples=8)
    (found,) = score(FakeRuntime(table=logits[1]), reference).klds
    assert np.isfinite(found) and found > -1e-6
    assert score(FakeRuntime(table=logits[0]), reference).klds[0] < 1e-9


def test_a_position_takes_a_twentieth_of_two_bytes_for_each_entry() -> None:
    vocab = 49152
    reference = capture(FakeRuntime(table=bigram(vocab, rows=40)), [list(range(40))], [0])
    assert reference.nbytes / 40 <= 2 * vocab / 20


def test_only_positions_from_the_first_on_count(model: FakeRuntime) -> None:
    reference = capture(model, [[1, 2, 3, 4], [5], [6, 7, 8]], [2, 1, 1])
    found = score(model, reference)
    assert found.sequence.tolist() == [0, 0, 2, 2]
    assert found.position.tolist() == [2, 3, 1, 2]
    assert found.expected.tolist() == model.table[[3, 4, 7, 8]].argmax(axis=1).tolist()
    assert reference.sequences == [[1, 2, 3, 4], [5], [6, 7, 8]]


@pytest.mark.parametrize(("ours", "theirs"), [(V, V + 64), (V + 64, V), (V, 1000)])
def test_vocabularies_of_different_size_are_compared_over_the_shared_entries(ours: int, theirs: int) -> None:
    table = bigram(V, rows=300)
    wide = np.pad(table, ((0, 0), (0, 64)), constant_values=-4.0)
    model, candidate = FakeRuntime(table=wide[:, :ours]), noisy(FakeRuntime(table=wide[:, :theirs]), 0.3)
    found = score(candidate, capture(model, SEQUENCES, FIRST)).drift
    assert found.mean_kld_nats == pytest.approx(in_full(model, candidate).mean(), rel=0.05)


def test_an_answer_outside_the_reference_vocabulary_is_a_disagreement(
    model: FakeRuntime, reference: Reference
) -> None:
    padded = model.but(table=np.pad(model.table, ((0, 0), (0, 1)), constant_values=50.0))
    drift = score(padded, reference).drift
    assert drift.mean_kld_nats < 1e-9 and drift.top1_agreement == 0


# Faults in a candidate


def test_more_noise_is_more_drift(model: FakeRuntime, reference: Reference) -> None:
    drifts = [score(noisy(model, scale), reference).drift for scale in (0.01, 0.1, 0.3, 1.0)]
    assert [d.mean_kld_nats for d in drifts] == sorted(d.mean_kld_nats for d in drifts)
    assert drifts[0].mean_kld_nats < 1e-4 and drifts[-1].mean_kld_nats > 0.3
    assert drifts[0].top1_agreement > 0.98 > drifts[-1].top1_agreement


def test_two_swapped_tokens_show_at_the_positions_that_expect_them(
    model: FakeRuntime, reference: Reference
) -> None:
    token = SEQUENCES[3][10]
    best, other = model.table[token].argsort()[[-1, 0]]
    table = model.table.copy()
    table[:, [best, other]] = table[:, [other, best]]
    found = score(model.but(table=table), reference)
    assert found.drift.top1_agreement < 1
    worst = found.worst(1)[0]
    assert found.expected[worst] == best and found.got[worst] != best
    assert found.klds[worst] == found.klds.max()


def test_a_missing_part_of_the_vocabulary_is_refused(model: FakeRuntime, reference: Reference) -> None:
    with pytest.raises(CorruptError, match="was not made from this model"):
        score(model.but(table=model.table[:, :100]), reference)


def test_nan_is_an_error_and_no_pass(model: FakeRuntime, reference: Reference) -> None:
    table = model.table.copy()
    table[SEQUENCES[0][0], 7] = np.nan
    with pytest.raises(StageError, match="NaN"):
        score(model.but(table=table), reference)


def test_nothing_to_compare_is_refused(model: FakeRuntime) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        capture(model, [[1, 2]], [2])


# The interval


def scored(klds: list[list[float]]) -> Scored:
    flat = np.concatenate([np.array(part) for part in klds])
    index = np.repeat(np.arange(len(klds)), [len(part) for part in klds])
    position = np.concatenate([np.arange(len(part)) for part in klds])
    return Scored(flat, index.astype(np.int32), index.astype(np.int32), index, position)


def test_the_interval_resamples_whole_sequences() -> None:
    assert scored([[0.1, 0.9]] * 20).drift.mean_kld_95 == pytest.approx((0.5, 0.5))
    between = scored([[0.1, 0.1], [0.9, 0.9]] * 10).drift
    assert between.mean_kld_95 and between.mean_kld_bounds
    low, high = between.mean_kld_95
    assert 0.25 < low < 0.42 and 0.58 < high < 0.75
    inner_low, inner_high = between.mean_kld_bounds
    assert low < inner_low < 0.5 < inner_high < high


def test_a_long_text_is_resampled_in_blocks() -> None:
    rng = np.random.default_rng(2)
    (low, high) = scored([rng.exponential(0.1, 256).tolist()]).drift.mean_kld_95 or (0, 0)
    assert 0 < low < 0.1 < high < 0.2


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        low, high = bootstrap_mean(rng.exponential(1.0, 60), np.arange(60), resamples=300)
        hits += low <= 1.0 <= high
    assert 0.87 <= hits / 200 <= 0.98


# The file


def test_a_saved_reference_is_read_back_and_its_bytes_are_stable(
    model: FakeRuntime, reference: Reference, tmp_path: Path
) -> None:
    reference.save(tmp_path / "a.npz")
    capture(model, SEQUENCES, FIRST).save(tmp_path / "b")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b").read_bytes()
    candidate = noisy(model, 0.3)
    np.testing.assert_array_equal(
        score(candidate, Reference.load(tmp_path / "b")).klds, score(candidate, reference).klds
    )


def _spoiled(reference: Reference, fault: str) -> dict[str, Any]:
    found = dict(vars(reference))
    if fault == "a missing array":
        del found["tail"]
    elif fault == "rows cut off":
        found["logp"] = found["logp"][:-1]
    elif fault == "ids outside the vocabulary":
        found["ids"] = found["ids"] + 2 * V
    elif fault == "lengths that do not fit":
        found["lengths"] = found["lengths"] + 1
    elif fault == "floats as ids":
        found["ids"] = found["ids"].astype(np.float32)
    elif fault == "a pickle":
        found["tokens"] = np.array([object(), None])
    return found


@pytest.mark.parametrize(
    "fault",
    [
        "a missing array", "rows cut off", "ids outside the vocabulary", "lengths that do not fit", "floats as ids",
        "a pickle", "a short file", "another file",
    ],
)  # fmt: skip
def test_a_spoiled_file_is_refused(reference: Reference, tmp_path: Path, fault: str) -> None:
    path = tmp_path / "reference.npz"
    np.savez(path, **_spoiled(reference, fault), allow_pickle=True)
    if fault == "a short file":
        path.write_bytes(path.read_bytes()[:-5000])
    elif fault == "another file":
        path.write_text("{}")
    with pytest.raises(CorruptError, match="is damaged, or was not written by"):
        Reference.load(path)
    path.unlink()
    with pytest.raises(ConfigError, match="There is no file"):
        Reference.load(path)


def test_a_flipped_bit_in_the_file_is_refused(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    reference.save(path)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        data[archive.getinfo("logp.npy").header_offset + 400] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError):
        Reference.load(path)


def test_progress_is_told_sequence_by_sequence(model: FakeRuntime) -> None:
    events: list[Event] = []
    reference = capture(model, [[1, 2], [3, 4]], [0, 0], events.append, stage="reference")
    score(model, reference, events.append)
    told = [(e.stage, e.done, e.total) for e in events if isinstance(e, Progress)]
    assert told == [("reference", 1, 2), ("reference", 2, 2), ("drift", 1, 2), ("drift", 2, 2)]


def test_log_probabilities_kept_are_those_of_the_model(model: FakeRuntime, reference: Reference) -> None:
    expected = log_softmax(model.table[SEQUENCES[0][0]].astype(float))
    np.testing.assert_allclose(reference.logp[0], expected[reference.ids[0]], rtol=1e-6)
    assert reference.tail[0] == pytest.approx(1 - np.exp(expected[reference.ids[0][:256]]).sum(), rel=1e-5)
