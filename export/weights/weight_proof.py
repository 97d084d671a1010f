"""The proof of an exported file's weights: each tensor is the model's own up to rounding, and faulty ones are named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.base.events import Emit, GateResult, Progress, ignore
from edgekit.export.weights.weight_compare import CALIBRATED, Reference, Stored, compare
from edgekit.export.weights.weight_faults import explain, sum_up

SHOWN = 3  # failures that a gate's detail lists
NAMED = 32  # the worst tensors, whose fault is identified; a file with more faulty ones holds another model


@dataclass(frozen=True)
class TensorError:
    """How far one tensor is from the reference, in relative Frobenius norms."""

    name: str
    type: str
    relative_error: float
    limit: float
    note: str = ""
    """What is wrong with the tensor, as a phrase that follows its name; empty when nothing is."""
    excess: float = 0.0
    """The worst error of the whole, a row or a block, as a multiple of its limit."""


@dataclass(frozen=True)
class StaticProof:
    """What can be proven of a file without running it; `tensors` are sorted worst first relative to their limit."""

    gates: list[GateResult]
    tensors: list[TensorError]


def _found(stored: Stored, reference: Reference) -> tuple[float, float, float] | None:
    """Relative error, its limit and the excess; None for another shape."""
    if stored.shape != reference.shape:
        return None
    found = compare(stored, reference.load())
    return found.relative, found.limit, found.excess


@dataclass
class Facts:
    """Facts that a file states about the model: how many agree, and a sentence for each that does not."""

    held: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, holds: bool, otherwise: str) -> None:
        """Count a fact; `otherwise` is the sentence to report when it does not hold."""
        if holds:
            self.held += 1
        else:
            self.failures.append(otherwise)

    def gate(self, name: str, stage: str) -> GateResult:
        """The gate on all facts."""
        total = self.held + len(self.failures)
        return gate(name, total, self.failures, f"{total} facts agree", stage)


def gate(name: str, total: int, failures: Sequence[str], otherwise: str, stage: str) -> GateResult:
    """A gate on the share of `total` that holds; its detail lists the first failures."""
    more = f"; and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
    detail = "; ".join(failures[:SHOWN]) + more if failures else otherwise
    value = 1.0 - min(len(failures), total) / max(total, 1)
    return GateResult(name, value, 1.0, not failures, detail, stage)


def prove_weights(
    stored: Sequence[Stored],
    references: Mapping[str, Reference],
    name: str,
    emit: Emit = ignore,
    *,
    stage: str,
) -> tuple[GateResult, list[TensorError]]:
    """The gate on the weights, and every tensor's error, worst first.

    `references` holds the reference of each stored tensor by name. Tensors without a reference are left out, because the
    gate on the structure reports them. Faulty tensors are read a second time to find out what they hold instead. The gate
    fails when no tensor could be compared.
    """
    known = [tensor for tensor in stored if tensor.name in references]
    errors: list[TensorError] = []
    for number, tensor in enumerate(known, start=1):
        found = _found(tensor, references[tensor.name])
        relative, limit, excess = found or (math.inf, 0.0, math.inf)
        note = "" if excess <= 1 else "is not the reference's"
        errors.append(TensorError(tensor.name, tensor.type, relative, limit, note, excess))
        emit(Progress(stage, number, len(known), "tensors", tensor.name))
    errors.sort(key=lambda error: -error.excess)
    tensors = {tensor.name: tensor for tensor in known}
    for place, error in enumerate(errors[:NAMED]):
        if error.note:
            note = explain(tensors[error.name], references[error.name], references)
            errors[place] = replace(error, note=note)
    notes = {error.name: error.note for error in errors if error.note}
    if not errors:
        return gate(name, 1, ["no tensor could be compared"], "", stage), errors
    how, caution = "rounding", ""
    if any(tensor.grid.factors == CALIBRATED for tensor in known):
        how = "rounding with error feedback"
        caution = "; it can hide a faint update, which only the distributions show"
    worst = f"the worst {errors[0].name} at {errors[0].excess:.2f} of its limit{caution}"
    clean = f"{len(errors)} tensors are the model's up to {how}, {worst}"
    return gate(name, len(errors), sum_up(notes), clean, stage), errors
