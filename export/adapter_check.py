"""Proof of an adapter file: the base opened in its runtime with the adapter on it, against the merged model in torch.

A rounded base answers a little differently from the float one, and behind that a wrong scale can hide. It shows in
the change that the adapter makes: between the base and the base with its adapter the rounding cancels for the most
part, and torch has the same change free of rounding, between the source model and the merged one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import registry
from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit, GateResult, Progress, ignore
from edgekit.proof.drift import kl_divergence
from edgekit.targets.target import Budget

STAGE = "export.adapter"
MAX_MEAN_KLD_NATS = Budget().mean_kld_nats
# Tuned SmolLM2-135M shows 0.0014 on a float base, 0.24 on Q4_K_M and 0.30 on int4 (limits 0.05, 0.31, 0.33), with
# alpha doubled 0.63 and more. Rows of q and k in the wrong order show 0.12 and more in tiny models on a float base.
MAX_CHANGE_ERROR = 0.05
PER_ROUNDING = 1.5
MOST = 0.5


def adapter_proof(
    base: Path,
    adapter: Path,
    source: Path,
    merged: Path,
    runtime: str,
    ids: Sequence[Sequence[int]],
    emit: Emit = ignore,
    *,
    prefix: str = "model",
    max_mean_kld_nats: float = MAX_MEAN_KLD_NATS,
    threads: int = 2,
) -> list[GateResult]:
    """Hold the exported file or folder `base` with the file `adapter` on it against the merged model.

    `source` and `merged` are the Hugging Face folders of the base and of its merge with the adapter, `runtime` is the
    registered name of what opens `base`, `ids` are token ids of conversations. The gates, emitted and returned, are
    `PREFIX.adapter_mean_kld_nats`, the mean KL divergence of the next-token distributions, and
    `PREFIX.adapter_change_error`, how far the change of the logits that the adapter makes is from the one it should
    make, as a share of that, in the Euclidean norm. The second one's limit grows with the base's own rounding; an
    adapter that changes less than the rounding does cannot be proven on such a base and fails.

    Raises `ConfigError` when there are no `ids`, and what the runtime raises for an adapter that it refuses.
    """
    if not ids:
        raise ConfigError("There are no conversations to prove the adapter on.", "Add rows to --data.")
    steps = iter(range(1, 3 * len(ids) + 1))

    def logits(name: str, path: Path, *states: Path | None) -> Iterator[tuple[NDArray[np.float32], ...]]:
        """For each sequence the logits with each adapter, or without one where there are no `states`."""
        model: Any = registry.load("runtimes", name)(path, threads=threads, context=max(map(len, ids)))
        try:
            for sequence in ids:
                found = []
                for state in states or (None,):
                    if states:
                        model.use(state)
                    found.append(model.logits(sequence))
                yield tuple(found)
                emit(Progress(STAGE, next(steps), 3 * len(ids), "sequences"))
        finally:
            model.close()

    with tempfile.TemporaryFile() as answers, tempfile.TemporaryFile() as sources:  # one model open at a time
        for rows in logits(runtime, base, None, adapter):
            for row in rows:
                np.save(answers, row)
        for rows in logits("torch", source):
            np.save(sources, rows[0])
        answers.seek(0)
        sources.seek(0)
        divergence = error = change = rounding = size = 0.0
        for (wanted,) in logits("torch", merged):
            plain, adapted, start = np.load(answers), np.load(answers), np.load(sources)
            divergence += float(kl_divergence(wanted, adapted).sum())
            error += _square((adapted - plain) - (wanted - start))
            change += _square(wanted - start)
            rounding += _square(plain - start)
            size += _square(start)
    positions = sum(map(len, ids))
    share = float(np.sqrt(error / change)) if change else float("inf")
    limit = min(MOST, MAX_CHANGE_ERROR + PER_ROUNDING * float(np.sqrt(rounding / size)))
    detail = f"{runtime}, base with adapter against merged, {positions} positions"
    gates = [
        _at_most(f"{prefix}.adapter_mean_kld_nats", divergence / positions, max_mean_kld_nats, detail),
        _at_most(f"{prefix}.adapter_change_error", share, limit, detail),
    ]
    for gate in gates:
        emit(gate)
    return gates


def _square(logits: NDArray[np.float32]) -> float:
    """Sum of squares about each row's mean, which a softmax does not see."""
    rows = logits.astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    return float(np.vdot(rows, rows))


def _at_most(name: str, value: float, limit: float, detail: str) -> GateResult:
    return GateResult(name, value, limit, value <= limit, detail, STAGE)
