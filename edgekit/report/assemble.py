"""`report.json`: what was built, what each stage cost and changed, and whether it may be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgekit.base.artifacts import sha256_tree, size_of
from edgekit.base.cache import Cache, StageOutput
from edgekit.base.events import Measured
from edgekit.base.hardware import fingerprint
from edgekit.models import source as model
from edgekit.proof.calibration import binned
from edgekit.proof.drift import Drift

if TYPE_CHECKING:
    from edgekit.build.checks import Proof
    from edgekit.build.pipeline import Request
    from edgekit.build.stages import Artifact

SCHEMA = "edgekit.report/1"


def assemble(
    request: Request,
    cache: Cache,
    made: Sequence[StageOutput],
    artifacts: Sequence[Artifact],
    drift: Mapping[str, Drift],
    from_input: Mapping[str, Drift],
    proofs: Sequence[Proof],
    answers: Mapping[str, StageOutput],
    signals: Sequence[StageOutput],
    speeds: Sequence[StageOutput],
) -> dict[str, Any]:
    """The report as JSON values. The verdict is `pass` only when every gate passed and there is at least one."""
    drifts = {**drift, **{step: found for proof in proofs for step, found in proof.drift.items()}}
    entered = {**from_input, **{step: found for proof in proofs for step, found in proof.from_input.items()}}
    done = [
        *{stage.name: stage for stage in made}.values(),
        *(step for artifact in artifacts for step in artifact.steps),
    ]
    done += [*(proof.stage for proof in proofs), *answers.values(), *speeds]
    gates = cache.gates
    config = model.read_config(made[-1].path)
    parameters = model.parameter_count(config)
    return {
        "schema": SCHEMA,
        "target": request.target.name,
        "model": request.source.name,
        "verdict": "pass" if gates and all(gate.passed for gate in gates) else "fail",
        "artifacts": [_artifact(artifact, parameters) for artifact in artifacts],
        "stages": [_stage(stage, drifts.get(stage.name), entered.get(stage.name)) for stage in done],
        "evaluation": {name: stage.result for name, stage in answers.items()},
        "profile": [entry for stage in speeds for entry in stage.result["entries"]],
        "gates": [{key: value for key, value in asdict(gate).items() if key != "time"} for gate in gates],
        "tuning": {metric: _history(cache, metric) for metric in ("loss", "validation_loss")},
        "reliability": {"bins": [asdict(each) for each in binned(_sure(signals))]},
        "budget": request.target.budget.model_dump(),
        "machine": fingerprint(),
    }


def _artifact(artifact: Artifact, parameters: int) -> dict[str, Any]:
    size = size_of(artifact.path)
    return {
        "path": artifact.output,
        "format": artifact.format,
        "bytes": size,
        "sha256": sha256_tree(artifact.path),
        "bits_per_weight": round(8 * size / parameters, 3),  # every byte of the file or folder counts
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
    """Confidence of every file's answers to held-out rows, and whether they were right."""
    return [(float(sure), bool(right)) for stage in signals for sure, right in stage.result["sure"]]


def _history(cache: Cache, metric: str) -> list[list[float]]:
    return [
        [fact.step or 0, fact.value]
        for fact in cache.facts
        if isinstance(fact, Measured) and fact.metric == metric
    ]
