"""Proof of a merge: the merged folder is compared with the base and its unmerged adapter."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.base.events import Emit, Measured, Progress, ignore
from edgekit.base.memory import give_back, page_out
from edgekit.export.weights.merge import apply, plan_edits
from edgekit.export.weights.safetensors_io import Weights
from edgekit.models import accelerator, mapped

TOGETHER = 16  # positions whose distributions are compared at once: of 152,000 tokens one takes 1.2 MiB in 64-bit floats


def merge_proof(
    base: Path, adapter: Path, merged: Path, sequences: Sequence[Sequence[int]], emit: Emit = ignore
) -> dict[str, Any]:
    """Compare next-token logits of `base` with `adapter` unmerged (by peft) and of `merged`, both in float32.

    Weights that the base stores in 16 bits are merged into 16 bits, and rounding changes the logits by more than a wrong
    merge may. So the logits are also compared before rounding: with the base whose weights are changed as they are used.
    `Rounding` then shows that what is stored is that merge, rounded once.

    The models are loaded one after the other; the logits of the first are kept on disk. Returns the largest absolute
    logit difference before rounding; the mean and the 99th percentile of the KL divergence of the stored model in nats,
    the share of positions with the same most likely token, and the number of positions; and the `rounding`, None where
    there is none.
    """
    weights = Weights(base)
    narrow = bool(_narrow_types(weights) and _narrow_types(Weights(merged)))
    with tempfile.TemporaryFile() as spill:
        unmerged = accelerator.place(mapped.with_adapter(mapped.load(base), adapter))
        for ids in sequences:
            np.save(spill, _logits(unmerged, ids).numpy())
        del unmerged
        give_back()
        if narrow:
            edits = {
                name: partial(apply, functions)
                for name, functions in plan_edits(base, weights.shapes, adapter).items()
            }
            exact = _differences(spill, accelerator.place(mapped.load(base, edits)), sequences)
            give_back()
        stored = _differences(spill, accelerator.place(mapped.load(merged)), sequences, emit)
    give_back()  # a model stays mapped until it is collected
    klds = np.concatenate(stored.divergences)
    proof = {
        "max_abs_logit_difference": (exact if narrow else stored).largest,
        "mean_kld_nats": float(klds.mean()),
        "p99_kld_nats": float(np.percentile(klds, 99)),
        "top1_agreement": stored.agreed / len(klds),
        "n_tokens": len(klds),
    }
    for metric, value in proof.items():
        emit(Measured("merge.proof", metric, value))
    rounding = measure_rounding(base, adapter, merged) if narrow else None
    return {**proof, "rounding": asdict(rounding) if rounding else None}


@dataclass(frozen=True)
class Rounding:
    """What storing a merge in 16 bits changed."""

    dtype: str
    """The 16-bit types that occur."""
    tensors: int
    """Number of tensors in the merged folder."""
    wrong: list[str]
    """Those whose stored values are not the merge, rounded to the nearest value of the type that the base has."""
    relative_error: float
    """Norm of the rounding errors over the norm of the merged tensors, those that the adapter changes."""
    update_error: float
    """The same over the norm of the adapter's update: near 1, rounding leaves nothing of it."""


def measure_rounding(base: Path, adapter: Path, merged: Path) -> Rounding:
    """Merge each tensor again in float32, and compare it with the stored one."""
    weights, written = Weights(base), Weights(merged)
    edits = plan_edits(base, weights.shapes, adapter)
    wrong = [name for name in weights if name not in written]
    error = energy = update = 0.0
    for name, stored in written.items():
        given = weights[name] if name in weights else stored.new_empty(0)
        exact = apply(edits.get(name, ()), given)
        if written.layout[name] != weights.layout.get(name) or not torch.equal(
            exact.to(stored.dtype), stored
        ):
            wrong.append(name)
        elif name in edits:
            error += float((exact - stored).square_().sum(dtype=torch.float64))
            energy += float(exact.square().sum(dtype=torch.float64))
            update += float((exact - given).square_().sum(dtype=torch.float64))
        for mapped_pages in (given, stored):  # or both models would be in memory at the end
            page_out(mapped_pages.data_ptr(), mapped_pages.nbytes)
    kinds = ", ".join(str(kind).removeprefix("torch.") for kind in _narrow_types(written))
    shares = ((error / max(norm, 1e-300)) ** 0.5 for norm in (energy, update))
    return Rounding(kinds, len(written), wrong, *shares)


def _narrow_types(weights: Weights) -> list[torch.dtype]:
    return sorted({kind for kind, _ in weights.layout.values()} & {*mapped.NARROW}, key=str)


@dataclass
class _Differences:
    largest: float = 0.0
    agreed: int = 0
    divergences: list[NDArray[np.float64]] = field(default_factory=list)


def _differences(
    spill: IO[bytes], model: Any, sequences: Sequence[Sequence[int]], emit: Emit = ignore
) -> _Differences:
    """The differences of `model` from the logits in `spill`."""
    found = _Differences()
    spill.seek(0)
    for done, ids in enumerate(sequences, 1):
        reference, logits = torch.from_numpy(np.load(spill)), _logits(model, ids)
        for start in range(0, len(logits), TOGETHER):
            expected, actual = (rows[start : start + TOGETHER] for rows in (reference, logits))
            found.largest = max(found.largest, (expected - actual).abs().max().item())
            p, q = expected.double().log_softmax(-1), actual.double().log_softmax(-1)
            found.divergences.append((p.exp() * (p - q)).sum(-1).numpy())
            found.agreed += int((expected.argmax(-1) == actual.argmax(-1)).sum())
        emit(Progress("merge.proof", done, len(sequences), "sequences"))
    return found


@torch.inference_mode()
def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits after each of `ids`, `(T, V)`."""
    result: torch.Tensor = model(accelerator.ids_for(model, [ids])).logits[0]
    return result.cpu()
