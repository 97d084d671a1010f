"""`report.json`: what was built, the cost and effect of each stage, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from edgekit.base.artifacts import sha256_tree, size_of
from edgekit.base.cache import StageOutput
from edgekit.base.events import GateResult, Measured
from edgekit.base.hardware import fingerprint
from edgekit.evaluation.failures import failures
from edgekit.evaluation.samples import SAMPLES, read_samples
from edgekit.proof.calibration import binned
from edgekit.proof.drift import Drift
from edgekit.report import allocation
from edgekit.report.outcome import Artifact, Outcome

SCHEMA = "edgekit.report/1"


def assemble(outcome: Outcome) -> dict[str, Any]:
    """The report as JSON values. The verdict is `pass` only when every gate passed and there is at least one."""
    drifts = {
        **outcome.drift,
        **{step: found for proof in outcome.proofs for step, found in proof.drift.items()},
    }
    entered = {
        **outcome.from_input,
        **{step: found for proof in outcome.proofs for step, found in proof.from_input.items()},
    }
    done = [
        *{stage.name: stage for stage in outcome.made}.values(),
        *(step for artifact in outcome.artifacts for step in artifact.steps),
    ]
    done += [*(proof.stage for proof in outcome.proofs), *outcome.answers.values()]
    done += [*outcome.robustness.values(), *outcome.speeds]
    gates = outcome.gates
    return {
        "schema": SCHEMA,
        "target": outcome.target.name,
        "model": outcome.model,
        "verdict": "pass" if gates and all(gate.passed for gate in gates) else "fail",
        "artifacts": [_artifact(artifact, outcome.parameters) for artifact in outcome.artifacts],
        "stages": [_stage(stage, drifts.get(stage.name), entered.get(stage.name)) for stage in done],
        "evaluation": {name: stage.result for name, stage in outcome.answers.items()},
        "failures": _failures(outcome),
        "robustness": {name: stage.result for name, stage in outcome.robustness.items()},
        "profile": [entry for stage in outcome.speeds for entry in stage.result["entries"]],
        "gates": [{key: value for key, value in asdict(gate).items() if key != "time"} for gate in gates],
        "tuning": {metric: _history(outcome.facts, metric) for metric in ("loss", "validation_loss")},
        "reliability": {"bins": [asdict(each) for each in binned(_sure(outcome.signals))]},
        "calibration": {
            artifact.format: stage.result
            for artifact, stage in zip(outcome.artifacts, outcome.calibrations, strict=True)
        },
        "budget": outcome.target.budget.model_dump(),
        "machine": fingerprint(),
    }


def _failures(outcome: Outcome) -> dict[str, Any]:
    """The classes in which the tuned model and each file have wrong answers, from the logs of their answers."""
    measured = ["tuned", *(artifact.format for artifact in outcome.artifacts)]
    tuned, *files = [read_samples(outcome.answers[name].path / SAMPLES) for name in measured]
    found = [failures(tuned), *(failures(samples, tuned) for samples in files)]
    return dict(zip(measured, found, strict=True))


def _artifact(artifact: Artifact, parameters: int) -> dict[str, Any]:
    size = size_of(artifact.path)
    return {
        "path": artifact.output,
        "format": artifact.format,
        "bytes": size,
        "sha256": sha256_tree(artifact.path),
        "bits_per_weight": round(8 * size / parameters, 3),  # every byte of the file or folder counts
        "quantization": allocation.read(artifact.steps[-1].path),
    }


def _stage(stage: StageOutput, drift: Drift | None, from_input: Drift | None) -> dict[str, Any]:
    return {
        "name": stage.name,
        "seconds": stage.seconds,
        "peak_rss_mib": stage.peak_rss_mib,
        "cached": stage.cached,
        "drift": asdict(drift) if drift else None,
        "drift_from_input": asdict(from_input) if from_input else None,
    }


def _sure(signals: Sequence[StageOutput]) -> list[tuple[float, bool]]:
    """Confidence and correctness of every file's answers to held-out rows."""
    return [(float(sure), bool(right)) for stage in signals for sure, right in stage.result["sure"]]


def _history(facts: Sequence[GateResult | Measured], metric: str) -> list[list[float]]:
    return [
        [fact.step or 0, fact.value] for fact in facts if isinstance(fact, Measured) and fact.metric == metric
    ]
