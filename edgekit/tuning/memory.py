"""How much memory a tuning step takes, estimated from the model's config; with it, whether activations are kept.

Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) keeps only the input of each layer and computes the rest again
in the backward pass: about a third more time, for the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.models.shape import MIB, Shape
from edgekit.targets.target import Tune

SPARE = 0.8  # of the available memory is planned for
# Values that a layer keeps for the backward pass, per token, in units of the hidden size and of the MLP's size. With a
# bfloat16 base, norms are in float32 and each input of an adapter is kept twice. `tests/tuning/test_memory.py` counts them.
# Plain attention keeps its weights too, in float32 and in bfloat16.
KEPT = {"float32": (10, 4, 1), "bfloat16": (17, 4, 3)}
SIZES = {"float32": 4, "bfloat16": 2}
PER_LOGIT = 16  # bytes: the logit, in float32 too, its log-probability, and their gradients
PER_ADAPTER_WEIGHT = 20  # bytes: the weight, its gradient, AdamW's two moments, and the best one so far


@dataclass(frozen=True)
class Batch:
    """The largest batch of a run."""

    rows: int
    tokens: int
    """Of the longest row."""
    answer: int
    """Supervised tokens of a row."""
    plain_attention: bool = False
    """Whether attention keeps its `(T, T)` weights."""


@dataclass(frozen=True)
class Need:
    """Memory of a tuning step, MiB."""

    weights: float
    """The frozen base, which may be mapped from its files, and the adapter with its optimiser."""
    kept: float
    """Activations when those of every layer are kept."""
    recomputed: float
    """Activations with gradient checkpointing."""

    def checkpoints(self, options: Tune, available_mib: float) -> bool:
        """Whether gradient checkpointing is on: as `options` say, or when all activations would not fit."""
        if options.gradient_checkpointing != "auto":
            return options.gradient_checkpointing == "on"
        return self.weights + self.kept > SPARE * available_mib


def base_dtype(options: Tune, native_bf16: bool) -> str:
    """The dtype in which the frozen base computes, where bfloat16 is native or is not."""
    if options.dtype != "auto":
        return options.dtype
    return "bfloat16" if native_bf16 else "float32"


def estimate(config: Mapping[str, Any], options: Tune, batch: Batch, dtype: str, base_bytes: float) -> Need:
    """The memory of a step on `batch`, for a base that takes `base_bytes`."""
    shape = Shape.of(config)
    hidden, mlp, layers, queries, keys = (
        shape.hidden, shape.intermediate, shape.layers, shape.queries, shape.keys,
    )  # fmt: skip
    size, tokens = SIZES[dtype], batch.rows * batch.tokens
    of_hidden, of_mlp, of_attention = KEPT[dtype]
    values = of_hidden * max(hidden, queries) + of_mlp * mlp
    if batch.plain_attention:
        values += of_attention * shape.heads * batch.tokens + 2 * queries
    layer = tokens * values * size
    inputs = layers * tokens * hidden * size
    logits = batch.rows * batch.answer * shape.vocabulary * PER_LOGIT
    sides = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + mlp)
    adapter = options.rank * layers * sides * PER_ADAPTER_WEIGHT
    return Need(
        weights=(base_bytes + adapter) / MIB,
        kept=(layers * layer + logits) / MIB,
        recomputed=(inputs + layer + logits) / MIB,
    )
