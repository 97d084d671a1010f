"""Proof of a merge: the merged folder is compared with the base and its unmerged adapter."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit.base.events import Emit, Measured, Progress, ignore


def merge_proof(
    base: Path, adapter: Path, merged: Path, sequences: Sequence[Sequence[int]], emit: Emit = ignore
) -> dict[str, float]:
    """Compare next-token logits of `base` with `adapter` unmerged (by peft) and of `merged`, both in float32.

    The models are loaded one after the other; the logits of the first are kept on disk. Returns the largest absolute
    logit difference, the mean and the 99th percentile of the KL divergence in nats, the share of positions with the
    same most likely token, and the number of positions.
    """
    from peft import PeftModel

    largest, agreed, divergences = 0.0, 0, list[NDArray[np.float64]]()
    with tempfile.TemporaryFile() as spill:
        unmerged = PeftModel.from_pretrained(_load(base), adapter)
        for done, ids in enumerate(sequences, 1):
            np.save(spill, _logits(unmerged, ids).numpy())
            emit(Progress("merge.proof", done, 2 * len(sequences), "sequences"))
        del unmerged
        gc.collect()
        model = _load(merged)
        spill.seek(0)
        for done, ids in enumerate(sequences, len(sequences) + 1):
            expected, actual = torch.from_numpy(np.load(spill)), _logits(model, ids)
            largest = max(largest, (expected - actual).abs().max().item())
            p, q = expected.double().log_softmax(-1), actual.double().log_softmax(-1)
            divergences.append((p.exp() * (p - q)).sum(-1).numpy())
            agreed += int((expected.argmax(-1) == actual.argmax(-1)).sum())
            emit(Progress("merge.proof", done, 2 * len(sequences), "sequences"))
    klds = np.concatenate(divergences)
    proof = {
        "max_abs_logit_difference": largest,
        "mean_kld_nats": float(klds.mean()),
        "p99_kld_nats": float(np.percentile(klds, 99)),
        "top1_agreement": agreed / len(klds),
        "n_tokens": len(klds),
    }
    for metric, value in proof.items():
        emit(Measured("merge.proof", metric, value))
    return proof


def _load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    ).eval()


@torch.inference_mode()
def _logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Logits after each of `ids`, `(T, V)`."""
    result: torch.Tensor = model(torch.tensor([list(ids)])).logits[0]
    return result
