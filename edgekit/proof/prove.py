"""The proof of one file: every check on it, the most basic first.


`build` runs it on what it exported, `edgekit verify FILE --reference MODEL` on a file made by anyone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base.errors import UnsupportedError
from edgekit.base.events import Alert, Emit, GateResult
from edgekit.base.memory import give_back
from edgekit.device.isolated import TimeLimits, open_isolated
from edgekit.models.source import read_config
from edgekit.proof import bare, gates, text_path
from edgekit.proof.deviations import Deviation
from edgekit.proof.drift import Scored, score
from edgekit.proof.facts import ReferenceFacts
from edgekit.proof.held_out import HeldOut
from edgekit.registry import Runtime
from edgekit.targets.target import Budget, GgufExport, OnnxExport

OPTIONS = {"gguf": GgufExport(format="gguf"), "onnx": OnnxExport(format="onnx")}
DRIFT_GATES = ("mean_kld_nats", "p99_kld_nats", "top1_agreement", "text_mean_kld_nats", "greedy_agreement")


@dataclass(frozen=True)
class Subject:
    """The file or folder to compare with a model: its format, and the runtime that opens it."""

    path: Path
    format: str
    runtime: str

    def open(self, threads: int) -> Runtime:
        """Open the file with its runtime in a child process; raises `CorruptError` when it cannot be loaded."""
        return open_isolated(self.runtime, self.path, threads=threads)

    def open_for(self, threads: int, context: int) -> Runtime:
        """The same without a limit for all calls together; each call still has its own limit."""
        limits = replace(TimeLimits.of(self.path), total_s=math.inf)
        return open_isolated(self.runtime, self.path, threads=threads, context=context, limits=limits)


def weights(subject: Subject, model: Path, emit: Emit, stage: str) -> Any:
    """Compare structure and weights of the file with those of the model folder, without running it.

    None for a Hugging Face folder, a plug-in's format, or an architecture that edgekit cannot write in this format (a
    warning says so). Weights in a form that cannot be read fail.
    """
    options = OPTIONS.get(subject.format)
    if options is None:
        return None
    exporter: registry.Exporter = registry.load("exporters", subject.format)
    if why := (exporter.incomparable or exporter.refusal)(read_config(model), options):
        emit(
            Alert("warning", f"Structure and weights are not compared: {why}", "The other checks still run.")
        )
        return None
    try:
        return registry.load("proofs", subject.format)(subject.path, model, emit, stage=stage)
    except UnsupportedError as error:
        unread = GateResult(f"{subject.format}.weights", 0.0, 1.0, False, error.message, stage)
        return Unread([unread])


@dataclass(frozen=True)
class Unread:
    """The proof of a file whose weights could not be read: it fails, without results for single tensors."""

    gates: list[GateResult]
    tensors: tuple[()] = ()


@dataclass(frozen=True)
class Expected:
    """What an opened file is compared with: the model's tokenizer and answers, and the allowed differences."""

    facts: ReferenceFacts
    held_out: HeldOut
    budget: Budget
    own: bool = False
    """Whether this build wrote the file, so that nothing that edgekit writes may be missing in it."""


@dataclass(frozen=True)
class Opened:
    """What was found on an opened file: gates, and the runtime's deviations, which are no faults."""

    gates: list[GateResult]
    deviations: list[Deviation]


def opened(
    runtime: Runtime, expected: Expected, scored: Scored, prefix: str, *, text_stage: str, drift_stage: str
) -> Opened:
    """The gates on the text path, the ends of answers and the next-token distributions of an opened file.

    `scored` is its comparison with `expected.held_out`. Failures of the text path name `text_stage`, failures of the
    distributions `drift_stage`.
    """
    facts, held_out, budget = expected.facts, expected.held_out, expected.budget
    identical, deviations = text_path.identity(runtime, facts, prefix, text_stage, own=expected.own)
    behaves = behaviour(
        facts.stop_ids, held_out, scored, budget, prefix, text_stage=text_stage, drift_stage=drift_stage
    )
    return Opened([*identical, *behaves], deviations)


def behaviour(
    stop_ids: frozenset[int], held_out: HeldOut, scored: Scored, budget: Budget, prefix: str, *,
    text_stage: str, drift_stage: str,
) -> list[GateResult]:  # fmt: skip
    """Ends of answers and next-token distributions; without conversations those of plain text and its continuations."""
    answers, conversations, text = (
        kind(scored) for kind in (held_out.answers, held_out.conversations, held_out.text)
    )
    answered = [
        gates.stop_contract(scored, answers, stop_ids, budget, prefix, text_stage),
        gates.greedy_agreement(scored, answers, stop_ids, budget, prefix, drift_stage),
    ]
    if not conversations.any():
        read = gates.text_drift(scored.among(text), budget, prefix, drift_stage)
        return [*answered, read] if answers.any() else [read]
    return [
        *answered,
        *gates.drift(
            scored.among(conversations),
            scored.among(conversations & answers),
            scored.among(text) if text.any() else None,
            budget,
            prefix,
            drift_stage,
        ),
    ]


def prove(
    subject: Subject, model: Path, expected: Expected, emit: Emit, *, threads: int, stage: str = "verify"
) -> list[GateResult]:
    """Every check of a file against the model folder it claims to be; each gate is emitted when it is measured."""
    found: list[GateResult] = []

    def tell(results: Sequence[GateResult]) -> None:
        found.extend(results)
        for result in results:
            emit(result)

    static = weights(subject, model, emit, stage)
    if static:
        tell(static.gates)
    give_back()  # what the comparison of the weights has freed
    runtime = subject.open(threads)
    try:
        scored = score(runtime, expected.held_out.reference, emit, stage=stage)
        found_open = opened(runtime, expected, scored, subject.format, text_stage=stage, drift_stage=stage)
        results = found_open.gates
        if without_edgekit := bare.compare(runtime, expected.facts):
            results.append(without_edgekit.gate(subject.format, stage))
    finally:
        runtime.close()
    tell(with_culprits(results, static))
    for deviation in found_open.deviations:
        emit(Alert("info", f"Deviation: {deviation}"))
    return found


def with_culprits(results: Sequence[GateResult], static: Any, count: int = 3) -> list[GateResult]:
    """The results; one failed drift gate also names the tensors that differ most from the model's."""
    failed = {r.name.rpartition(".")[2]: r for r in results if not r.passed}
    worst = next((failed[name] for name in DRIFT_GATES if name in failed), None)
    if worst is None or not static or not static.tensors:
        return list(results)
    furthest = sorted(static.tensors, key=lambda tensor: -tensor.relative_error)[:count]
    named = ", ".join(f"{tensor.name} ({tensor.type}, {tensor.relative_error:.1%})" for tensor in furthest)
    told = replace(worst, detail=f"{worst.detail}; tensors with the largest error: {named}")
    return [told if result is worst else result for result in results]
