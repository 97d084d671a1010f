"""A GGUF file of a Hugging Face folder whose weights are rounded with error feedback, within a size if there is one.

types ─ allocation, or llama.cpp's choice ─► rounding, layer by layer ─► streaming into the file
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path
from typing import Any

import torch

from edgekit.base.events import Emit, Progress, ignore
from edgekit.export.gguf import kernels, stream_process
from edgekit.export.gguf.grids import GRIDS
from edgekit.export.gguf.rounding import STAGE, Network, round_model, round_weight
from edgekit.export.gguf.stream import EMBEDDING, packed_size
from edgekit.export.gguf.write import read_model
from edgekit.export.weights.allocation import Choice, Plan, allocate
from edgekit.export.weights.feedback import Moment
from edgekit.export.weights.layerwise import one_torch_thread
from edgekit.export.weights.rounding import Result, Text
from edgekit.export.weights.sensitivity import Part, costs
from edgekit.registry import ExportContext
from edgekit.targets.target import GGUF_TYPES, GgufExport, Quantize

LONG_BLOCK = (
    256  # weights; types with longer blocks have smaller errors for their bits, where rows have room for them
)


@dataclass(frozen=True)
class Fitted:
    """What a file holds."""

    types: dict[str, str]
    """The type of each rounded tensor."""
    cost: float | None
    """Estimated KL divergence, nats; None where nothing was chosen."""
    costs: dict[str, float]
    """The part of each tensor."""
    errors: dict[str, float]
    """The error of each layer's outputs on the calibration text, as a share of their size."""
    decode_tokens_per_s: float | None = None
    """Decoding speed of a file of these types on this machine, where one was asked for."""


def fit(out: Path, options: GgufExport, context: ExportContext, emit: Emit = ignore) -> Fitted:
    """Write the context's model as the new GGUF file `out`.

    With a size or a speed in the context's `quantize` the types are allocated, except where `options` name a tensor's type; else they are
    those that llama.cpp gives a file of the type `options.type`. Raises `StageError` when no types take so little or are so
    fast, and as `stream` does.
    """
    quantize, model, threads = context.quantize or Quantize(), context.model, context.threads
    kinds = {"rows": context.calibration, "text": context.texts}
    texts = [Text(name, sequences) for name, sequences in kinds.items() if sequences]
    shapes = {tensor.name: tensor.shape for tensor in read_model(model).tensors if len(tensor.shape) == 2}
    types, fixed = stream_process.layout(model, options)
    weights = sum(map(prod, shapes.values()))
    short = sum(prod(shape) for shape in shapes.values() if shape[1] % LONG_BLOCK)
    limit = quantize.max_bytes(weights, short_rows=2 * short > weights)
    estimates: dict[str, dict[str, float]] = {}
    plan, speed = None, None
    if options.leaves_types_open and (limit is not None or quantize.min_decode_tokens_per_s):
        free = {name: columns for name, (_, columns) in shapes.items() if not _is_named(name, options)}
        candidates = {name: _candidates(columns, quantize.types) for name, columns in free.items()}
        candidates = {name: found for name, found in candidates.items() if found}
        # `fixed` holds those of floats already.
        settled = [name for name in shapes if name not in candidates and types[name] != "F32"]
        fixed += sum(packed_size(*shapes[name], types[name]) for name in settled)
        with one_torch_thread():
            estimates = _estimates(Network(model), texts, candidates, threads, emit)
        room = inf if limit is None else limit - fixed
        plan, speed = _plan(model, quantize, options, shapes, estimates, room, threads)
        types |= plan.types
        options = _asking_for(plan.types, shapes, options)
    types = {name: type for name, type in types.items() if name in shapes and type in GRIDS}
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".rounded-") as work:
        with one_torch_thread():
            errors = round_model(model, types, texts, Path(work), threads=threads, emit=emit)
        stream_process.assemble(model, out, options, Path(work), threads=threads, emit=emit)
    parts = {name: estimates[name][type] for name, type in types.items() if name in estimates}
    return Fitted(types, plan.cost if plan else None, parts, errors, speed)


def _plan(
    model: Path,
    quantize: Quantize,
    options: GgufExport,
    shapes: Mapping[str, tuple[int, int]],
    estimates: Mapping[str, Mapping[str, float]],
    room: float,
    threads: int,
) -> tuple[Plan, float | None]:
    """The types of the tensors of `estimates` in `room` bytes, and the decoding speed where one is asked for."""

    def choices(times: Mapping[str, float]) -> dict[str, dict[str, Choice]]:
        return {
            name: {
                type: Choice(packed_size(*shapes[name], type), cost, times[type] * prod(shapes[name]))
                for type, cost in found.items()
            }
            for name, found in estimates.items()
        }

    def speed(types: Mapping[str, str]) -> float:
        return kernels.decode_speed(model, _asking_for(types, shapes, options), threads)

    if quantize.min_decode_tokens_per_s:
        times = kernels.seconds_a_weight(estimates, shapes, speed)
        return kernels.fast_enough(choices(times), room, quantize.min_decode_tokens_per_s, speed)
    weights = sum(prod(shapes[name]) for name in estimates)
    longest = weights * kernels.TIME[kernels.USUAL] / quantize.min_speedup if quantize.min_speedup else inf
    return allocate(choices(kernels.TIME), room, longest), None


def _estimates(
    network: Network,
    texts: Sequence[Text],
    candidates: Mapping[str, Sequence[str]],
    threads: int,
    emit: Emit = ignore,
) -> dict[str, dict[str, float]]:
    """What each candidate type of each tensor costs, by GGUF name."""

    def parts(path: str, shape: tuple[int, int]) -> list[Part[str]]:
        name = network.name(path)
        return [Part(name, shape[0], candidates.get(name, ()))]

    def rounded(weight: torch.Tensor, moment: Moment, type: str) -> Result:
        return round_weight(weight, moment, type, 0, threads)

    def report(*done: Any) -> None:
        emit(Progress(STAGE, *done))

    return costs(network.torch, texts, parts, rounded, threads, report)


def _candidates(columns: int, types: Sequence[str]) -> list[str]:
    """Those of the types that rows of so many columns can have, the best for its bits where there are several."""
    fitting = [type for type in types if columns % GRIDS[type].block == 0]
    long = {GRIDS[type].bits for type in fitting if GRIDS[type].block == LONG_BLOCK}
    return [type for type in fitting if GRIDS[type].block == LONG_BLOCK or GRIDS[type].bits not in long]


def _is_named(name: str, options: GgufExport) -> bool:
    """Whether the options name the type of this tensor."""
    by_name = any(re.search(pattern, name) for pattern in options.tensor_types)
    return by_name or (name == EMBEDDING and options.token_embedding_type is not None)


def _asking_for(
    types: Mapping[str, str], shapes: Mapping[str, tuple[int, int]], options: GgufExport
) -> GgufExport:
    """The options that give each tensor its type, and the file the type which holds most bytes."""
    bytes_of: Counter[str] = Counter()
    for name, type in types.items():
        bytes_of[type] += packed_size(*shapes[name], type)
    by_name = {f"^{re.escape(name)}$": type for name, type in types.items()}
    changes: dict[str, Any] = {"tensor_types": {**options.tensor_types, **by_name}}
    for usual, _ in bytes_of.most_common(1):
        changes["type"] = usual if usual in GGUF_TYPES else f"{usual}_M"
    return options.model_copy(update=changes)
