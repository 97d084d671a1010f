"""A GGUF file of a Hugging Face folder whose weights are rounded with error feedback, within a size if there is one.

types ─ allocation, or llama.cpp's choice ─► rounding, layer by layer ─► streaming into the file
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, prod
from pathlib import Path
from typing import Any

import torch

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.export.gguf import kernels, stream_process
from edgekit.export.gguf.grids import GRIDS
from edgekit.export.gguf.rounding import STAGE, Network, round_model, round_weight
from edgekit.export.gguf.stream import EMBEDDING, packed_size
from edgekit.export.gguf.write import MIB, read_model
from edgekit.export.weights.allocation import Choice, Plan, allocate, smallest
from edgekit.export.weights.feedback import Moment
from edgekit.export.weights.layerwise import one_torch_thread
from edgekit.export.weights.rounding import Result, Text
from edgekit.export.weights.sensitivity import Part, costs
from edgekit.registry import ExportContext
from edgekit.targets.target import GGUF_TYPES, GgufExport, Quantize

LONG_BLOCK = (
    256  # weights; types with longer blocks have smaller errors for their bits, where rows have room for them
)
Estimates = Mapping[str, Mapping[str, float]]
"""The KL divergence of each candidate type of each tensor, nats."""
Choices = Mapping[str, Mapping[str, Choice]]


@dataclass(frozen=True)
class Try:
    """A file that was made and compared with the model."""

    calibration: str
    """The name of its calibration set."""
    bytes: int
    estimated_kld_nats: float | None
    """None where nothing was chosen."""
    mean_kld_nats: dict[str, float]
    """Measured on held-out text of each kind."""


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
    calibration: str | None = None
    """The calibration set of the file, where it was compared with the model."""
    mean_kld_nats: dict[str, float] = field(default_factory=dict)
    """What was measured then, on held-out text of each kind."""
    tries: list[Try] = field(default_factory=list)
    """All files that were compared."""


def fit(out: Path, options: GgufExport, context: ExportContext, emit: Emit = ignore) -> Fitted:
    """Write the context's model as the new GGUF file `out`.

    With a size or a speed in the context's `quantize` the types are allocated, except where `options` name a tensor's type; else they are
    those that llama.cpp gives a file of the type `options.type`. Raises `StageError` when no types take so little or are so
    fast, and as `stream` does.
    """
    draft = Draft(options, context, emit)
    texts = texts_of({"rows": context.calibration, "text": context.texts})
    estimates = draft.estimates(texts) if draft.is_limited else {}
    return draft.write(out, texts, estimates, draft.allocated(estimates) if draft.is_limited else None)


def texts_of(kinds: Mapping[str, Sequence[Sequence[int]]]) -> list[Text]:
    """The calibration text of each kind that there is."""
    return [Text(name, sequences) for name, sequences in kinds.items() if sequences]


class Draft:
    """A file of the context's model whose types are still open: what each may be, and the bytes of all else."""

    def __init__(self, options: GgufExport, context: ExportContext, emit: Emit) -> None:
        self.quantize = context.quantize or Quantize()
        self._model, self._threads = context.model, context.threads
        self._options, self._emit = options, emit
        tensors = read_model(self._model).tensors
        self._shapes = {tensor.name: tensor.shape for tensor in tensors if len(tensor.shape) == 2}
        self._types, self._fixed = stream_process.layout(self._model, options)
        weights = sum(map(prod, self._shapes.values()))
        short = sum(prod(shape) for shape in self._shapes.values() if shape[1] % LONG_BLOCK)
        self._limit = self.quantize.max_bytes(weights, short_rows=2 * short > weights)

    @property
    def is_limited(self) -> bool:
        """Whether a size or a speed decides the types."""
        speed = self.quantize.min_speedup or self.quantize.min_decode_tokens_per_s
        return self._options.leaves_types_open and (self._limit is not None or speed is not None)

    def estimates(self, texts: Sequence[Text]) -> Estimates:
        """What the types that each open tensor may have cost on `texts`.

        Raises `ConfigError` when no types take as little as the size that is asked for.
        """
        free = {
            name: columns for name, (_, columns) in self._shapes.items() if not _is_named(name, self._options)
        }
        candidates = {name: _candidates(columns, self.quantize.types) for name, columns in free.items()}
        candidates = {name: found for name, found in candidates.items() if found}
        self._check_size(candidates)
        with one_torch_thread():
            return _estimates(Network(self._model), texts, candidates, self._threads, self._emit)

    def allocated(self, estimates: Estimates) -> Plan:
        """The types of the tensors of `estimates` that cost least within the size and the speed."""
        room, wanted = self._room(estimates), self.quantize.min_decode_tokens_per_s
        if wanted:
            times = kernels.seconds_a_weight(estimates, self._shapes, self._speed)
            plan, speed = kernels.fast_enough(self._choices(estimates, times), room, wanted, self._speed)
            return replace(plan, decode_tokens_per_s=speed)
        return allocate(self._choices(estimates), room, self._longest(estimates))

    def of_size(self, estimates: Estimates, bytes: int) -> Plan:
        """The types that cost least where these tensors take at most so many bytes."""
        return allocate(self._choices(estimates), bytes, self._longest(estimates))

    def within(self, estimates: Estimates, max_cost: float) -> Plan:
        """The types that take the fewest bytes and cost at most `max_cost` nats, or the least."""
        return smallest(self._choices(estimates), max_cost, self._longest(estimates))

    def write(self, out: Path, texts: Sequence[Text], estimates: Estimates, plan: Plan | None) -> Fitted:
        """Round for `texts` and write the new file `out`; without a plan, with llama.cpp's types."""
        options, types = self._options, dict(self._types)
        if plan:
            types |= plan.types
            options = _asking_for(plan.types, self._shapes, options)
        types = {name: type for name, type in types.items() if name in self._shapes and type in GRIDS}
        model, threads, emit = self._model, self._threads, self._emit
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".rounded-") as work:
            with one_torch_thread():
                errors = round_model(model, types, texts, Path(work), threads=threads, emit=emit)
            stream_process.assemble(model, out, options, Path(work), threads=threads, emit=emit)
        parts = {name: estimates[name][type] for name, type in types.items() if name in estimates}
        cost, speed = (plan.cost, plan.decode_tokens_per_s) if plan else (None, None)
        return Fitted(types, cost, parts, errors, speed)

    def _choices(self, estimates: Estimates, times: Mapping[str, float] = kernels.TIME) -> Choices:
        return {
            name: {
                type: Choice(
                    packed_size(*self._shapes[name], type), cost, times[type] * prod(self._shapes[name])
                )
                for type, cost in found.items()
            }
            for name, found in estimates.items()
        }

    def _check_size(self, candidates: Mapping[str, Sequence[str]]) -> None:
        if self._limit is None:
            return
        taken = sum(
            min(packed_size(*self._shapes[name], type) for type in found)
            for name, found in candidates.items()
        )
        least, weights = self._limit - self._room(candidates) + taken, sum(map(prod, self._shapes.values()))
        if least > self._limit:
            raise ConfigError(
                f"A file of {self._limit / MIB:,.1f} MiB was asked for, and with the smallest types that may be chosen it has "
                f"{least / MIB:,.1f} ({8 * least / weights:.2f} bits for each weight). No file was written.",
                "Ask for a larger file, or in a target for smaller types: quantize.types.",
            )

    def _room(self, open: Collection[str]) -> float:
        """Bytes for the tensors whose types are `open`; all others have their types. `_fixed` holds those of floats already."""
        if self._limit is None:
            return inf
        settled = [name for name in self._shapes if name not in open and self._types[name] != "F32"]
        return (
            self._limit
            - self._fixed
            - sum(packed_size(*self._shapes[name], self._types[name]) for name in settled)
        )

    def _longest(self, estimates: Estimates) -> float:
        """The time that these tensors may take, with the usual times of the types."""
        if not self.quantize.min_speedup:
            return inf
        weights = sum(prod(self._shapes[name]) for name in estimates)
        return weights * kernels.TIME[kernels.USUAL] / self.quantize.min_speedup

    def _speed(self, types: Mapping[str, str]) -> float:
        return kernels.decode_speed(
            self._model, _asking_for(types, self._shapes, self._options), self._threads
        )


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
