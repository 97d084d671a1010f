"""The stages that make something: each a cached call of the module that does the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base.cache import Cache, StageOutput
from edgekit.base.events import GateResult
from edgekit.build.request import Request
from edgekit.data.rows import Row
from edgekit.registry import ExportContext
from edgekit.report.outcome import Artifact
from edgekit.targets.target import Export

MERGE_LOGIT_TOLERANCE = 1e-3  # rounding of float32 reaches 2e-4; a wrong scale or a bfloat16 merge shows 1e-2
MERGE_PROOF_ROWS = 8
MERGE_PROOF = 2  # raise it when the proof measures something else


def tune(cache: Cache, request: Request, base: StageOutput) -> StageOutput:
    """The LoRA adapter tuned on the training rows."""
    options = request.target.tune

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.tuning.tune import tune

        data = request.data
        return tune(
            base.path,
            data.train,
            data.validation,
            options,
            out,
            work=work,
            threads=request.threads,
            emit=cache.emit,
        )

    inputs = {
        "base": base.digest,
        "data": request.data.digest,
        "options": options.model_dump(),
        "threads": request.threads,
    }
    return cache.stage("tune", inputs, run, ("torch", "transformers", "peft", "accelerate"))


def merge(cache: Cache, request: Request, base: StageOutput, adapter: StageOutput) -> StageOutput:
    """Base and adapter as one fp32 folder, proven against the unmerged adapter's logits."""

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.models.tokenizer import ModelTokenizer

        registry.load("stages", "merge")(base.path, adapter.path, out, emit=cache.emit)
        ids = ModelTokenizer(out).render_ids(request.data.validation[:MERGE_PROOF_ROWS])
        proof: dict[str, Any] = registry.load("stages", "merge-proof")(
            base.path, adapter.path, out, ids, emit=cache.emit
        )
        value, name = proof["max_abs_logit_difference"], "merge.max_abs_logit_difference"
        detail = f"merged against unmerged, {proof['n_tokens']} positions"
        cache.emit(
            GateResult(name, value, MERGE_LOGIT_TOLERANCE, value <= MERGE_LOGIT_TOLERANCE, detail, "merge")
        )
        return proof

    return cache.stage(
        "merge",
        {"base": base.digest, "adapter": adapter.digest, "proof": MERGE_PROOF},
        run,
        ("torch", "peft", "safetensors"),
    )


def prune(cache: Cache, request: Request, merged: StageOutput) -> StageOutput:
    """The merged model with its least influential layers left out; the same model when the target drops none."""
    options = request.target.prune
    if options.drop_layers == 0:
        return merged
    rows = calibration_rows(request)

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.models.tokenizer import ModelTokenizer

        calibration = ModelTokenizer(merged.path).render_ids(rows)
        pruned: dict[str, Any] = registry.load("stages", "prune")(
            merged.path, out, options, calibration=calibration, emit=cache.emit
        )
        return pruned

    inputs = {"model": merged.digest, "options": options.model_dump(), "rows": [row.id for row in rows]}
    return cache.stage("prune", inputs, run, ("torch", "transformers"))


def export(cache: Cache, request: Request, source: StageOutput, options: Export) -> Artifact:
    """One format of the target, step by step, each step from the output of the one before."""
    exporter: registry.Exporter = registry.load("exporters", options.format)
    rows = calibration_rows(request)
    steps: list[StageOutput] = []
    outputs = [source.path]
    for step in exporter.steps(options):
        before = steps[-1].digest if steps else source.digest

        def run(out: Path, work: Path, step: registry.ExportStep = step) -> None:
            from edgekit.models.tokenizer import ModelTokenizer

            calibration = ModelTokenizer(source.path).render_ids(rows)
            out.mkdir()
            context = ExportContext(source.path, calibration, request.threads)
            step.run(outputs[-1], out / step.output, context, cache.emit)

        inputs = {
            "input": before,
            "model": source.digest,
            "options": step.options,
            "calibration": [row.id for row in rows],
        }
        steps.append(cache.stage(step.stage, inputs, run, step.packages))
        outputs.append(steps[-1].path / step.output)
    return Artifact(
        options.format, exporter.runtime, Path(outputs[-1]).name, tuple(steps), tuple(outputs[1:])
    )


def calibration_rows(request: Request) -> Sequence[Row]:
    """The training rows whose activations weigh rounding errors, spread over the whole set."""
    count = request.target.quantize.calibration_rows
    rows = request.data.train
    return rows[:: max(1, len(rows) // count)][:count] if count else []
