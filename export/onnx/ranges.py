"""The range of each block of weights with which its rounding errors are least, of several that are tried.

Errors are compared by their power 2.4, which takes more time than all the rest. On a processor it is computed by a logarithm,
nearly, and then exactly for the few blocks whose best range that does not tell. What is chosen is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # ranges tried for a block, as shares of its full range
ERROR_POWER = 2.4  # exponent of the error by which ranges are compared, as in the code of GPTQ's authors
TOLERANCE = 3e-5  # bound of the relative error of a sum of powers by logarithm
TINY = 1e-15  # added to errors before their logarithm is taken
LEAST = 1e-20  # error of a block, below which that would matter
PIECE = 1 << 17  # weights of one piece, so that it stays in the processor's cache


def in_threads(work: Callable[[int], None], starts: Iterable[int]) -> None:
    """Call `work` with each of `starts`, in as many threads as torch uses; in each of them torch uses one."""
    starts = list(starts)
    threads = min(torch.get_num_threads(), len(starts))
    if threads < 2:
        for start in starts:
            work(start)
        return

    def alone(start: int) -> None:
        with torch.inference_mode():  # holds for one thread only
            work(start)

    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
        list(pool.map(alone, starts))  # raises what `work` raised


def codes(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """The integers nearest to `weight`, as floats; scales and zero points have its shape or are broadcast to it."""
    return (weight / scale).add_(zero).round_().clamp_(0, 2**bits - 1)


def best(blocks: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each row of `blocks` `(rows, columns)`, float32 `(rows,)` each.

    They are the best of several ranges around zero. The result does not depend on the number of threads.
    """
    if blocks.device.type != "cpu":
        return best_exactly(blocks, bits)
    scale, zero = blocks.new_empty(len(blocks)), blocks.new_empty(len(blocks))
    step = max(1, PIECE // blocks.shape[1])

    def fill(start: int) -> None:
        piece = slice(start, start + step)
        scale[piece], zero[piece] = _best(blocks[piece], bits)

    in_threads(fill, range(0, len(blocks), step))
    return scale, zero


def best_exactly(blocks: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What `best` finds, on any device, with the power of every error."""
    top = 2**bits - 1
    low, high = blocks.amin(1).clamp(max=0), blocks.amax(1).clamp(min=0)
    least = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    for shrink in SHRINKS:
        scale = shrink * (high - low) / top
        scale = torch.where(scale > 0, scale, 1.0)
        zero = (-shrink * low / scale).round().clamp(0, top)
        rounded = codes(blocks, scale[:, None], zero[:, None], bits)
        error = ((rounded - zero[:, None]) * scale[:, None] - blocks).abs().pow(ERROR_POWER).sum(1)
        better = error < least
        least = torch.where(better, error, least)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


@np.errstate(all="ignore")  # of a weight that is not finite
def _best(blocks: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    # numpy is fastest along a long axis, so that blocks are columns here.
    weights = np.ascontiguousarray(blocks.detach().numpy().T)
    low, high = np.minimum(weights.min(0), 0), np.maximum(weights.max(0), 0)
    scratch = np.empty_like(weights)
    scales, zeros, errors = (np.empty((len(SHRINKS), len(blocks)), np.float32) for _ in range(3))
    for shrink, scale, zero, error in zip(SHRINKS, scales, zeros, errors, strict=True):
        np.divide(shrink * (high - low), 2**bits - 1, out=scale)
        scale[~(scale > 0)] = 1.0
        np.clip(np.rint(-shrink * low / scale, out=zero), 0, 2**bits - 1, out=zero)
        np.divide(weights, scale, out=scratch)
        scratch += zero
        np.clip(np.rint(scratch, out=scratch), 0, 2**bits - 1, out=scratch)
        scratch -= zero
        scratch *= scale
        scratch -= weights
        np.abs(scratch, out=scratch)
        nearly_powered(scratch).sum(0, out=error)
    choice, least = errors.argmin(0), errors.min(0)
    close = (errors <= least * (1 + 2 * TOLERANCE)).sum(0)  # none is close to NaN
    places = np.arange(len(blocks))
    best_scale, best_zero = (torch.from_numpy(part[choice, places]) for part in (scales, zeros))
    unclear = torch.from_numpy(np.flatnonzero((close != 1) | (least < LEAST)))
    if len(unclear):
        best_scale[unclear], best_zero[unclear] = best_exactly(blocks[unclear], bits)
    return best_scale, best_zero


def nearly_powered(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`values`, none below zero, to the power `ERROR_POWER`, computed in their place; `TINY` is added to each."""
    values += np.float32(TINY)  # the logarithm of zero takes long
    np.log(values, out=values)
    values *= np.float32(ERROR_POWER)
    return np.exp(values, out=values)
