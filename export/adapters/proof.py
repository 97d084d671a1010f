"""Proof of an adapter file: compares the change that it makes in its runtime with the change that it should make.

The rounding of an exported base could hide a wrong scale. The file's own weights are therefore dequantized and the adapter
is merged into them in torch: this model and the file with its adapter differ only by the runtime's arithmetic. The same
run measures that difference on the base without the adapter, and the limit follows from it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgekit import registry
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.base.events import Emit, GateResult, Progress, ignore
from edgekit.export.gguf.proof import stored_weights as gguf_weights
from edgekit.export.onnx.proof import stored_weights as onnx_weights
from edgekit.export.weights.folder import copy_companions
from edgekit.export.weights.merge import merge
from edgekit.export.weights.safetensors_io import Weights, write_weights

STAGE = "export.adapter"
STORED: dict[str, Callable[[Path, Path], Mapping[str, Callable[[], NDArray[np.float32]]]]] = {
    "llama.cpp": gguf_weights,
    "onnxruntime": onnx_weights,
}
# Lowest limit, for a float base, whose arithmetic is almost exact. Rows of q and k in the wrong order give 0.12 or more
# in tiny models; a correct adapter of SmolLM2-135M gives 0.0014.
FLOAT_ERROR = 0.05
LARGEST = 0.5  # an error of half the adapter's change proves nothing, whatever the runtime's arithmetic adds


@dataclass(frozen=True)
class Pair:
    """An exported base and the adapter file made for it, with the folders that both were made from."""

    base: Path
    """The exported file or folder; for ONNX the one with slots for adapters."""
    file: Path
    """The adapter file."""
    runtime: str
    """The registered name of the runtime that opens `base`: `llama.cpp` or `onnxruntime`."""
    source: Path
    """The base's Hugging Face folder."""
    adapter: Path
    """The PEFT folder."""


def adapter_proof(
    pair: Pair, ids: Sequence[Sequence[int]], emit: Emit = ignore, *, prefix: str = "model", threads: int = 2
) -> GateResult:
    """Compare the change that the adapter file makes to the logits with the change that it should make.

    `ids` are token ids of conversations. The gate, emitted and returned, is `PREFIX.adapter_change_error`: the
    distance of the file's change from the right one, relative to the right one, in the Euclidean norm over `ids`. Its
    limit is the error that the runtime's arithmetic may add by the triangle inequality, if its relative error with the
    adapter is the one measured on the base.

    Raises `ConfigError` when there are no `ids`, `CorruptError` for a base whose weights cannot be read, and what the
    runtime raises for an adapter that it refuses.
    """
    if not ids:
        raise ConfigError("There are no conversations to prove the adapter on.", "Add rows to --data.")
    with tempfile.TemporaryDirectory(dir=pair.base.parent, prefix=".proof-") as work:
        plain, merged = Path(work, "base"), Path(work, "merged")
        _dequantize(pair, plain)
        merge(plain, pair.adapter, merged)
        with (
            _answers(pair.runtime, pair.base, (None, pair.file), ids, threads) as answered,
            _answers("torch", plain, (None,), ids, threads) as started,
            _answers("torch", merged, (None,), ids, threads) as wanted,
        ):
            error = change = noise = before = after = 0.0
            for number, ((found, adapted), (start,), (end,)) in enumerate(
                zip(answered, started, wanted, strict=True), start=1
            ):
                error += _square((adapted - found) - (end - start))
                change += _square(end - start)
                noise += _square(found - start)
                before += _square(start)
                after += _square(end)
                emit(Progress(STAGE, number, len(ids), "sequences"))
    error, change, noise, before, after = np.sqrt([error, change, noise, before, after]).tolist()
    share = error / change if change else float("inf")
    allowed = noise * (1 + after / before) / change if change else 0.0
    limit = min(LARGEST, max(FLOAT_ERROR, allowed))
    detail = f"{pair.runtime}, base with adapter against their merge, {sum(map(len, ids))} positions"
    gate = GateResult(f"{prefix}.adapter_change_error", share, limit, share <= limit, detail, STAGE)
    emit(gate)
    return gate


def _dequantize(pair: Pair, out: Path) -> None:
    """Write the weights of the exported base as a Hugging Face folder in float32."""
    source = Weights(pair.source)
    tied = {"lm_head.weight"} if "model.embed_tokens.weight" in source else set()
    stored = STORED[pair.runtime](pair.base, pair.source)
    layout = {
        name: (torch.float32, shape)
        for name, (kind, shape) in source.layout.items()
        if kind.is_floating_point
    }
    if missing := sorted(layout.keys() - stored.keys() - tied):
        raise CorruptError(
            f"{pair.base} has no readable {missing[0]}, so its adapter cannot be proven.",
            "Export the base again.",
        )
    out.mkdir()
    layout = {name: found for name, found in layout.items() if name in stored}
    write_weights(out, layout, lambda name: torch.from_numpy(np.array(stored[name]())))
    (out / "config.json").write_bytes((pair.source / "config.json").read_bytes())
    copy_companions(pair.source, out)


@contextmanager
def _answers(
    runtime: str, path: Path, adapters: Sequence[Path | None], ids: Sequence[Sequence[int]], threads: int
) -> Iterator[Iterator[tuple[NDArray[np.float32], ...]]]:
    """For each of the sequences `ids` the logits `(T, V)` with each of the adapters, read back from disk.

    The model is closed before the first ones are read, so that only one is open at a time.
    """
    with tempfile.TemporaryFile() as file:
        for rows in _logits(runtime, path, adapters, ids, threads):
            np.save(file, rows)
        file.seek(0)
        yield (tuple(np.load(file) for _ in adapters) for _ in ids)


def _logits(
    runtime: str, path: Path, adapters: Sequence[Path | None], ids: Sequence[Sequence[int]], threads: int
) -> Iterator[NDArray[np.float32]]:
    model: Any = registry.load("runtimes", runtime)(path, threads=threads, context=max(map(len, ids)))
    try:
        for sequence in ids:
            for adapter in adapters:
                if adapters != (None,):
                    model.use(adapter)
                yield model.logits(sequence)
    finally:
        model.close()


def _square(logits: NDArray[np.float32]) -> float:
    """Sum of squared deviations from each row's mean; a softmax does not depend on that mean."""
    rows = logits.astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    return float(np.vdot(rows, rows))
