"""Drift: the divergence of a candidate's next-token distributions Q from the reference's distributions P.

The measure is KL(P || Q) in nats at each position, as in llama.cpp's `llama-perplexity --kl-divergence`, with its
mean, its 99th percentile and the share of positions with the same most likely token.

A full copy of P is 4V bytes a position. `Reference` keeps 8 (head + samples): the log-probabilities of the `head`
most likely tokens, the mass of the tail, and `samples` tokens drawn from the tail in proportion to P. By the chain
rule of relative entropy (Cover & Thomas 2006, theorem 2.5.3),

    KL(P || Q) = KL over {head tokens, the tail as one event} + P(tail) KL(P given tail || Q given tail).

The first part is exact, the second is estimated without bias from the drawn tokens.

Each KL is summed as p f(log q/p) with f(x) = exp(x) - 1 - x >= 0. As q and p sum to one this is the same number;
no term is negative, so it is zero only for equal distributions, and rounding enters in second order only. In the
sampled part exp(x) - 1 is a control variate of mean zero (Schulman 2020, "Approximating KL Divergence"). Whether it is
used depends on the head alone, never on the drawn tokens, so the choice does not bias the estimate.

Keeping the tail as one event alone, without draws, reads 5 % low with a head of 1024 tokens and 11 % low with 256
(SmolLM2-135M, plain text, any quantization); with 256 draws the mean agrees with the full sum within 0.2 %.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import ConfigError, CorruptError, StageError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.evaluation.statistics import ONE_SIDED_95, bootstrap_mean, clustered_share
from edgekit.models.likelihood import log_softmax
from edgekit.registry import Runtime

Floats = NDArray[np.float64]

FLOOR = -100.0  # nats; a masked entry has a logit of -inf and would turn 0 log 0 into NaN
TINY = 1e-44  # about exp(FLOOR)
BLOCK = 64  # positions


@dataclass(frozen=True)
class Drift:
    """The summary of a comparison over `n_tokens` positions, as in `report.json`.

    `mean_kld_95` is the 95 % bootstrap interval of the mean. The ends of `mean_kld_bounds` and `top1_bounds` are
    one-sided 95 % bounds, which the gates use.
    """

    mean_kld_nats: float
    p99_kld_nats: float
    top1_agreement: float
    n_tokens: int
    mean_kld_95: tuple[float, float] | None = None
    mean_kld_bounds: tuple[float, float] | None = None
    top1_bounds: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Scored:
    """A comparison position by position; every array is `(N,)`.

    `sequence` and `position` locate a position in the reference's sequences, `expected` and `got` are
    the most likely next tokens of the reference and of the candidate.
    """

    klds: Floats
    expected: NDArray[np.int32]
    got: NDArray[np.int32]
    sequence: NDArray[np.int64]
    position: NDArray[np.int64]

    @property
    def drift(self) -> Drift:
        """The summary over all positions."""
        return self.among(np.ones(len(self.klds), dtype=bool))

    def among(self, chosen: NDArray[np.bool_]) -> Drift:
        """The summary over the `chosen (N,)` positions; raises `ConfigError` when there is none."""
        if not chosen.any():
            raise ConfigError("There is nothing to compare: all answers are empty.", "Add rows to --data.")
        klds, blocks = self.klds[chosen], self._blocks()[chosen]
        same = (self.expected == self.got)[chosen]
        index = np.unique(blocks, return_inverse=True)[1]
        return Drift(
            mean_kld_nats=float(klds.mean()),
            p99_kld_nats=float(np.percentile(klds, 99)),
            top1_agreement=float(same.mean()),
            n_tokens=len(klds),
            mean_kld_95=bootstrap_mean(klds, blocks),
            mean_kld_bounds=bootstrap_mean(klds, blocks, ONE_SIDED_95),
            top1_bounds=clustered_share(
                np.bincount(index, same).tolist(), np.bincount(index).tolist(), ONE_SIDED_95
            ),
        )

    def _blocks(self) -> NDArray[np.int64]:
        """The block `(N,)` of each position: a sequence, or 64 positions of a long one.

        Positions close to each other are not independent, so intervals resample blocks of them (Künsch 1989).
        """
        longest = int(self.position.max()) // BLOCK + 1
        return np.asarray(self.sequence * longest + self.position // BLOCK)

    def worst(self, count: int = 5) -> list[int]:
        """Indices of the `count` positions with the largest divergence, worst first."""
        return [int(n) for n in np.argsort(-self.klds, kind="stable")[:count]]


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference's distributions on S sequences, at N positions in total.

    `tokens (sum of lengths,)` holds the concatenated sequences, `lengths (S,)` their lengths and `first (S,)` the
    first position of each that counts. `ids` and `logp` `(N, head + samples)` hold the most likely tokens in
    falling order and then those drawn from the tail, `tail (N,)` the mass outside the head.
    """

    vocab_size: int
    head: int
    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    first: NDArray[np.int32]
    ids: NDArray[np.int32]
    logp: NDArray[np.float32]
    tail: NDArray[np.float32]

    @property
    def sequences(self) -> list[list[int]]:
        """The token ids of each sequence."""
        return [part.tolist() for part in np.split(self.tokens, np.cumsum(self.lengths)[:-1])]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays: the size of the file without its headers."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def save(self, path: Path) -> None:
        """Write the arrays as one `.npz`, completely or not at all; equal references give equal bytes."""
        with written_whole(path, force=True) as staging, staging.open("wb") as file:
            np.savez(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read the output of `save` without unpickling.

        Raises `ConfigError` when there is no such file, and `CorruptError` for anything else.
        """
        if not path.is_file():
            raise ConfigError(f"There is no file {path}.", "Write it with `edgekit drift capture`.")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found: dict[str, Any] = {name: arrays[name] for name in cls.__dataclass_fields__}
            found |= {name: int(found[name]) for name in ("vocab_size", "head")}
            reference = cls(**found)
            reference._check()
        except (OSError, EOFError, KeyError, TypeError, ValueError, IndexError, zipfile.BadZipFile) as error:
            raise CorruptError(
                f"{path} is damaged, or was not written by `edgekit drift capture`. It was not changed.",
                "Write it again with `edgekit drift capture`.",
            ) from error
        return reference

    def _check(self) -> None:
        positions = int(np.maximum(self.lengths - self.first, 0).sum())
        if not (
            self.lengths.shape == self.first.shape == (len(self.lengths),)
            and self.tokens.shape == (self.lengths.sum(),)
            and self.tail.shape == (positions,)
            and self.ids.shape == self.logp.shape == (positions, self.ids.shape[1])
            and 1 <= self.head < self.ids.shape[1]
            and self.ids.dtype == self.tokens.dtype == np.int32
            and self.ids.min() >= 0
            and max(self.ids.max(), self.tokens.max()) < self.vocab_size
        ):
            raise ValueError("its arrays do not fit together")


def kl_divergence(p_logits: NDArray[np.floating], q_logits: NDArray[np.floating]) -> Floats:
    """KL(P || Q) in nats at each position `(T,)` of two `(T, V)` arrays of logits, summed in float64.

    With vocabularies of different size (one is padded) both distributions are normalised over the shared first V
    entries, so logits of padding do not affect the result.
    """
    shared = min(p_logits.shape[-1], q_logits.shape[-1])
    result = np.empty(len(p_logits))
    for n, (p_row, q_row) in enumerate(zip(p_logits, q_logits, strict=True)):
        logp, logq = _log_softmax(p_row[:shared]), _log_softmax(q_row[:shared])
        result[n] = np.exp(logp) @ _f(logq - logp)
    return result


def capture(
    runtime: Runtime,
    sequences: Sequence[Sequence[int]],
    first: Sequence[int],
    emit: Emit = ignore,
    *,
    head: int = 256,
    samples: int = 256,
    stage: str = "drift",
) -> Reference:
    """Record the reference's distributions after each token of `sequences[i]` from position `first[i]` on.

    Earlier positions are boilerplate that all rows share. The last position counts, although its next token is not in
    the data. Equal input gives equal arrays. Raises `ConfigError` when no position is left.
    """
    if sum(max(len(ids) - start, 0) for ids, start in zip(sequences, first, strict=True)) == 0:
        raise ConfigError(
            "There is nothing to compare: the held-out conversations are empty.", "Add rows to --data."
        )
    rng = np.random.default_rng(0)
    rows = []
    for done, (ids, start) in enumerate(zip(sequences, first, strict=True), 1):
        rows += [_summary(row, head, samples, rng) for row in _logits(runtime, ids, start)]
        emit(Progress(stage, done, len(sequences), "sequences"))
    return Reference(
        vocab_size=runtime.vocab_size,
        head=min(head, runtime.vocab_size),
        tokens=np.concatenate([np.asarray(ids, np.int32) for ids in sequences]),
        lengths=np.array([len(ids) for ids in sequences], np.int32),
        first=np.array(first, np.int32),
        ids=np.stack([row[0] for row in rows]).astype(np.int32),
        logp=np.stack([row[1] for row in rows]).astype(np.float32),
        tail=np.array([row[2] for row in rows], np.float32),
    )


def score(runtime: Runtime, reference: Reference, emit: Emit = ignore, *, stage: str = "drift") -> Scored:
    """Compare `runtime` with `reference` at every recorded position.

    Vocabularies of different size are compared over the shared entries as in `kl_divergence`. The most likely token is
    taken over all entries, which reveals a candidate that answers with a padding entry. Needs O(V) memory in addition
    to the logits of one sequence. Raises `CorruptError` when the candidate's vocabulary lacks tokens of the
    sequences and `StageError` when it computes NaN.
    """
    if (largest := int(reference.tokens.max())) >= runtime.vocab_size:
        raise CorruptError(
            f"The vocabulary of the file for {runtime.name} has {runtime.vocab_size} entries, but the reference's "
            f"conversations use token id {largest}. The file was not made from this model.",
            "Export it again from the reference model.",
        )
    klds: list[float] = []
    got: list[int] = []
    places: list[tuple[int, int]] = []
    for index, ids in enumerate(reference.sequences):
        start = int(reference.first[index])
        for offset, row in enumerate(_logits(runtime, ids, start)):
            klds.append(_divergence(row, reference, len(klds)))
            got.append(int(row.argmax()))
            places.append((index, start + offset))
        note = f"mean KLD {np.mean(klds or 0):.4f}"
        emit(Progress(stage, index + 1, len(reference.lengths), "sequences", note))
    sequence, position = np.array(places, np.int64).T
    return Scored(np.array(klds), reference.ids[:, 0], np.array(got, np.int32), sequence, position)


def divergences(mean_kld_nats: Mapping[str, float]) -> str:
    """The mean KL divergence on each kind of text, in words."""
    return ", ".join(f"{value:.3g} nats on {kind}" for kind, value in mean_kld_nats.items())


def _logits(runtime: Runtime, ids: Sequence[int], start: int) -> NDArray[np.float32]:
    """The rows of logits `(T - start, V)` that count; nothing is computed when there are none."""
    if start >= len(ids):
        return np.empty((0, runtime.vocab_size), np.float32)
    rows = runtime.logits(ids, start)
    if np.isnan(rows).any():
        raise StageError(
            f"{runtime.name} computed logits that are not numbers (NaN) after: {runtime.decode(ids)[-60:]!r}",
            "The weights in the file are damaged; export it again.",
        )
    return rows


def _log_softmax(logits: NDArray[np.floating]) -> Floats:
    return np.maximum(log_softmax(logits), FLOOR)


def _f(x: Floats) -> Floats:
    return np.asarray(np.expm1(x) - x)


def _mean_kl(log_ratios: Floats, controlled: bool) -> float:
    """An unbiased estimate of KL(P || Q) from log q/p at tokens drawn from P, with or without the control variate.

    Both ways are unbiased; `controlled` must not depend on `log_ratios`.
    """
    return float((_f(log_ratios) if controlled else -log_ratios).mean())


def _control_helps(log_ratios: Floats) -> bool:
    """Whether exp(x) - 1 lowers the variance of the estimate, judged by the ratios in the head, which are not drawn.

    It does while the ratios are near one: for normal x the variances of f(x) and of -x cross at var(x) = 1.26.
    """
    return len(log_ratios) > 1 and bool(log_ratios.var() < 1.25)


def _summary(
    logits: NDArray[np.float32], head: int, samples: int, rng: np.random.Generator
) -> tuple[NDArray[np.intp], Floats, float]:
    """Head ids in falling order and drawn ids, their log-probabilities, and the tail's mass."""
    logp = _log_softmax(logits)
    count = min(head, len(logp))
    top = np.argpartition(-logp, count - 1)[:count]
    top = top[np.lexsort((top, -logp[top]))]
    rest = np.exp(logp)
    rest[top] = 0.0
    cumulative = np.cumsum(rest)
    # systematic sampling: one random offset, then equal steps through the tail's mass
    points = (rng.random() + np.arange(samples)) / samples * cumulative[-1]
    drawn = np.minimum(np.searchsorted(cumulative, points, side="right"), len(logp) - 1)
    ids = np.concatenate([top, drawn])
    return ids, logp[ids], float(cumulative[-1])


def _divergence(logits: NDArray[np.float32], reference: Reference, n: int) -> float:
    """KL(P || Q) of position `n`, where Q are the candidate's `logits` `(V,)`."""
    shared = min(len(logits), reference.vocab_size)
    kept = reference.ids[n] < shared
    ids, logp = reference.ids[n][kept], reference.logp[n][kept].astype(np.float64)
    head = int(kept[: reference.head].sum())
    # the mass of P on entries that Q lacks is removed, and P is normalised again
    tail = float(reference.tail[n]) * kept[reference.head :].mean()
    total = np.exp(logp[:head]).sum() + tail
    logp, tail = logp - np.log(total), tail / total

    weights = logits[:shared].astype(np.float64)
    weights -= weights.max()
    ratios = weights[ids] - logp
    np.exp(weights, out=weights)
    normalizer = np.log(weights.sum())
    ratios = np.maximum(ratios - normalizer, FLOOR)
    result = np.exp(logp[:head]) @ _f(ratios[:head])
    if tail > 0:
        weights[ids[:head]] = 0.0
        tail_ratio = np.log(max(weights.sum(), TINY)) - normalizer - np.log(tail)
        result += tail * (
            _f(tail_ratio) + _mean_kl(ratios[head:] - tail_ratio, _control_helps(ratios[:head]))
        )
    return float(result)
