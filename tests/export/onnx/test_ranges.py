"""The best range of each block: the quick search finds what the exact one finds, with any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from edgekit.export.onnx import ranges
from edgekit.export.onnx.gptq import round_nearest

BLOCK = 32


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def drawn(kind: str) -> torch.Tensor:
    """Blocks `(2000, BLOCK)` of one kind of weights."""
    made = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, BLOCK, generator=made)
    if kind == "normal":
        return normal * 0.02
    if kind == "bfloat16":
        return (normal * 0.02).bfloat16().float()
    if kind == "far apart":
        return normal * 10.0 ** torch.randint(-30, 6, (2000, 1), generator=made)
    if kind == "few values":  # several ranges are equally good
        return torch.randint(-2, 3, (2000, BLOCK), generator=made).float()
    positive = normal.abs()
    positive[::2] = 0
    positive[1::4, 1:] = 0
    return positive


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["normal", "bfloat16", "far apart", "few values", "zeros"])
def test_the_quick_search_finds_what_the_exact_one_finds(kind: str, bits: int) -> None:
    blocks = drawn(kind)
    for found, wanted in zip(ranges.best(blocks, bits), ranges.best_exactly(blocks, bits), strict=True):
        assert torch.equal(found, wanted)


def test_a_block_that_is_not_finite_is_left_to_the_exact_search() -> None:
    blocks = drawn("normal")[:4]
    blocks[1, 3], blocks[2, 0] = torch.nan, torch.inf
    for found, wanted in zip(ranges.best(blocks, 4), ranges.best_exactly(blocks, 4), strict=True):
        assert torch.equal(found.nan_to_num(7), wanted.nan_to_num(7))


def test_the_search_needs_the_exact_power_where_the_quick_one_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted: with a logarithm that is wrong by more than the tolerance, other ranges are chosen."""
    blocks = drawn("normal")
    exact = ranges.best_exactly(blocks, 4)[0]
    power = ranges.nearly_powered
    monkeypatch.setattr(ranges, "nearly_powered", lambda values: power(values) * values)
    assert not torch.equal(ranges.best(blocks, 4)[0], exact)


def test_the_quick_power_keeps_to_its_tolerance() -> None:
    values = np.logspace(-9, 4, 100_001, dtype=np.float32)
    exact = values.astype(np.float64) ** ranges.ERROR_POWER
    assert np.abs(ranges.nearly_powered(values) / exact - 1).max() < ranges.TOLERANCE


def test_threads_do_not_show_in_what_is_rounded(monkeypatch: pytest.MonkeyPatch, two_threads: None) -> None:
    weight = drawn("normal").reshape(-1, 8 * BLOCK)
    monkeypatch.setattr(ranges, "PIECE", 16 * 8 * BLOCK)
    with torch.inference_mode():
        several = round_nearest(weight, 4, BLOCK)
        grid = ranges.best(drawn("normal"), 4)
    torch.set_num_threads(1)
    one = round_nearest(weight, 4, BLOCK)
    for part in ("codes", "scales", "zeros"):
        assert torch.equal(getattr(several, part), getattr(one, part))
    for found, wanted in zip(grid, ranges.best(drawn("normal"), 4), strict=True):
        assert torch.equal(found, wanted)


def test_what_fails_in_a_thread_is_raised(two_threads: None) -> None:
    def fail(start: int) -> None:
        raise ValueError(start)

    with pytest.raises(ValueError, match="0"):
        ranges.in_threads(fail, range(4))
