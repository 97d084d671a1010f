"""The stages that hold something against its reference: proofs, drift, accuracy, speed, and the gates on them.

The reference is the tuned, merged fp32 model; the conversations are validation rows, which nothing was tuned on.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import registry
from edgekit.artifacts import size_of, write_json
from edgekit.cache import Cache, StageOutput
from edgekit.events import GateResult
from edgekit.proof import gates
from edgekit.proof.drift import Drift, Reference, Scored, score
from edgekit.proof.drift import capture as capture_reference

if TYPE_CHECKING:
    from edgekit.pipeline import Request
    from edgekit.stages import Artifact
    from edgekit.tokenizer import ModelTokenizer

DRIFT_ROWS = 48
STORE, ANSWERS = "reference.npz", "answers.json"
BATTERY_VERSION = 1  # raise it when the battery or the fixture conversations change


@dataclass(frozen=True)
class Proof:
    """What was found of one artifact: the drift of each step that made it."""

    stage: StageOutput
    drift: dict[str, Drift]


def tokenizer_of(model: StageOutput) -> ModelTokenizer:
    """The reference tokenizer of a model stage's folder."""
    from edgekit.tokenizer import ModelTokenizer

    return ModelTokenizer(model.path)


def capture(cache: Cache, request: Request, model: StageOutput) -> StageOutput:
    """The reference's next-token distributions on held-out conversations, stored.

    What all conversations begin with is boilerplate of the template and counts once, not once a row.
    """
    rows = request.data.validation[:DRIFT_ROWS]

    def run(out: Path, work: Path) -> None:
        tokenizer = tokenizer_of(model)
        sequences = tokenizer.render_ids(rows)
        prompts = [
            tokenizer.chat_template.render(row.messages[:-1], add_generation_prompt=True) for row in rows
        ]
        first = [0, *[_shared_prefix(sequences)] * (len(sequences) - 1)]
        runtime = registry.load("runtimes", "torch")(model.path, threads=request.threads)
        out.mkdir()
        capture_reference(runtime, sequences, first, cache.emit, stage="reference").save(out / STORE)
        # the last position of a prompt is the first of its answer: there the first token is chosen
        write_json(out / ANSWERS, [len(tokenizer.encode(prompt)) - 1 for prompt in prompts])
        runtime.close()

    inputs = {"model": model.digest, "rows": [[row.id, *row.messages] for row in rows]}
    return cache.stage("reference", inputs, run, ("torch", "transformers"))


def _shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    shortest = min(map(len, sequences))
    for place in range(shortest):
        if len({ids[place] for ids in sequences}) > 1:
            return place
    return max(shortest - 1, 0)


def drift(cache: Cache, request: Request, reference: StageOutput, model: StageOutput) -> Drift:
    """The drift of a Hugging Face folder against the reference."""
    name = f"drift.{model.name}"

    def run(out: Path, work: Path) -> dict[str, Any]:
        return asdict(_score(request, reference, "torch", model.path, cache, name).drift)

    inputs = {"reference": reference.digest, "model": model.digest}
    return Drift(**cache.stage(name, inputs, run, ("torch", "transformers")).result)


def _score(
    request: Request, reference: StageOutput, runtime: str, path: Path, cache: Cache, stage: str
) -> Scored:
    opened = registry.load("runtimes", runtime)(path, threads=request.threads)
    try:
        return score(opened, Reference.load(reference.path / STORE), cache.emit, stage=stage)
    finally:
        opened.close()


def verify(
    cache: Cache, request: Request, reference: StageOutput, source: StageOutput, artifact: Artifact
) -> Proof:
    """Open the artifact in its own runtime and hold it against the reference; every check becomes a gate.

    `source` is the folder that was exported, whose tokenizer, template and stop ids count.
    """
    name, budget = f"verify.{artifact.format}", request.target.budget

    def run(out: Path, work: Path) -> dict[str, Any]:
        scored = {
            step.name: _score(request, reference, artifact.runtime, path, cache, name)
            for step, path in zip(artifact.steps, artifact.outputs, strict=True)
        }
        guilty = next(
            (step for step, at in scored.items() if at.drift.mean_kld_nats > budget.mean_kld_nats), None
        )
        runtime = registry.load("runtimes", artifact.runtime)(artifact.path, threads=request.threads)
        try:
            facts = gates.ReferenceFacts.of(tokenizer_of(source))
            for gate in gates.identity(runtime, facts, artifact.format, artifact.steps[0].name):
                cache.emit(gate)
        finally:
            runtime.close()
        last = artifact.steps[-1].name
        starts = np.array(json.loads((reference.path / ANSWERS).read_text("utf-8")))
        spoken = scored[last].among(scored[last].position >= starts[scored[last].sequence])
        for gate in gates.drift(scored[last].drift, spoken, budget, artifact.format, guilty or last):
            cache.emit(gate)
        return {step: asdict(at.drift) for step, at in scored.items()}

    inputs = {
        "reference": reference.digest,
        "artifact": [step.digest for step in artifact.steps],
        "source": source.digest,
        "budget": budget.model_dump(),
        "battery": BATTERY_VERSION,
    }
    stage = cache.stage(name, inputs, run, ("llama-cpp-python", "onnxruntime-genai", "transformers"))
    return Proof(stage, {step: Drift(**found) for step, found in stage.result.items()})


def evaluate(
    cache: Cache, request: Request, name: str, digest: str, runtime: str, path: Path, max_tokens: int
) -> StageOutput:
    """Exact-match accuracy of one model on the test rows, greedy; the samples are in the stage's folder."""
    rows = request.data.test

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.evaluate import evaluate as evaluate_rows

        opened = registry.load("runtimes", runtime)(path, threads=request.threads)
        out.mkdir()
        try:
            return evaluate_rows(
                opened,
                rows,
                max_tokens=max_tokens,
                log=out / "samples.jsonl",
                emit=cache.emit,
                stage=f"eval.{name}",
            )
        finally:
            opened.close()

    inputs = {"model": digest, "rows": [[row.id, *row.messages] for row in rows], "max_tokens": max_tokens}
    return cache.stage(f"eval.{name}", inputs, run, ("torch", "llama-cpp-python", "onnxruntime-genai"))


def profile(cache: Cache, request: Request, artifact: Artifact) -> StageOutput:
    """Speed and memory of the artifact in fresh processes on this machine."""
    from edgekit.hardware import fingerprint

    machine = fingerprint()
    device = request.target.device
    simulated = platform.machine() not in device.arch or device.threads > machine["cores"]

    def run(out: Path, work: Path) -> dict[str, Any]:
        entries = registry.load("profiles", "profile")(
            artifact.path, artifact.runtime, request.target.profile, emit=cache.emit, simulated=simulated
        )
        return {"entries": entries}

    inputs = {"artifact": artifact.digest, "options": request.target.profile.model_dump(), "machine": machine}
    return cache.stage(f"profile.{artifact.format}", inputs, run, ("llama-cpp-python", "onnxruntime-genai"))


def budget_gates(
    request: Request, artifact: Artifact, tuned: StageOutput, answers: StageOutput, speed: StageOutput
) -> list[GateResult]:
    """The gates on what was measured of a whole artifact: size, memory and accuracy."""
    budget, last = request.target.budget, artifact.steps[-1].name
    found = [gates.accuracy_drop(tuned.result, answers.result, budget, artifact.format, last)]
    if budget.size_mib is not None:
        found.append(gates.size(size_of(artifact.path), budget.size_mib, artifact.format, last))
    if budget.peak_rss_mib is not None:
        peak = max(entry["peak_rss_mib"] for entry in speed.result["entries"])
        found.append(gates.peak_rss(peak, budget.peak_rss_mib, artifact.format, last))
    return found
