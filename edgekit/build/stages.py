"""The stages that make something; each is a cached call of the module that does the work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base import hardware
from edgekit.base.artifacts import digest_of
from edgekit.base.cache import Cache, StageOutput
from edgekit.base.events import GateResult
from edgekit.build.request import Request
from edgekit.build.trial import held_out_digest, of_build
from edgekit.data.calibration_text import passages, windows
from edgekit.data.rows import Row, content_of, evenly_spaced
from edgekit.models.source import read_config
from edgekit.registry import ExportContext
from edgekit.report.outcome import Artifact
from edgekit.targets.target import Export

# Largest logit difference of a correct float32 merge: x(W + sBA) and xW + s(xA)B differ only by rounding, whose error
# grows with depth, width and the size of the logits. SmolLM2-135M (30 layers, logits up to 32, rank 16, plain, rsLoRA
# and DoRA) differs by 1.6e-4 at most; a wrong scale, a transposed factor or a merge in bfloat16 by 1e-2 or more.
MERGE_LOGIT_TOLERANCE = 1e-3
MERGE_PROOF_ROWS = 8
# Cost of storing a right merge in the base's 16 bits. The demo's adapter costs 1e-4 in bfloat16 and 2e-6 in float16, a
# fourfold update 3e-4. Of an update a quarter as large, bfloat16 loses 40 %, which costs 2e-3, as much as leaving out a layer:
# it is refused, because the tuned model is then not what was tuned (`benchmarks/merge_rounding.md`).
ROUNDING_KLD_NATS = 1e-3
TOKENIZER = "edgekit.models.tokenizer"


def tune(cache: Cache, request: Request, base: StageOutput) -> StageOutput:
    """The LoRA adapter tuned on the training rows."""
    options = request.target.tune

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.tuning.tune import tune

        return tune(
            base.path,
            request.data,
            options,
            out,
            work=work,
            threads=request.threads,
            emit=cache.emit,
        )

    inputs = {
        "base": base.digest,
        "rows": digest_of([content_of(rows) for rows in (request.data.train, request.data.validation)]),
        "options": options.of_result(),
        "threads": request.threads,
        "machine": {"bfloat16": hardware.cpu_has_bf16(), "gpu": hardware.gpu()},  # what `auto` follows
    }
    return cache.stage("tune", inputs, run, ["edgekit.tuning"], ["bitsandbytes"])


def merge(cache: Cache, request: Request, base: StageOutput, adapter: StageOutput) -> StageOutput:
    """Base and adapter as one folder in the base's own type, proven against the unmerged adapter's logits."""
    rows = request.data.validation[:MERGE_PROOF_ROWS]

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.models.tokenizer import ModelTokenizer

        registry.load("stages", "merge")(base.path, adapter.path, out, emit=cache.emit)
        ids = ModelTokenizer(out).render_ids(rows)
        proof: dict[str, Any] = registry.load("stages", "merge-proof")(
            base.path, adapter.path, out, ids, emit=cache.emit
        )
        value, name = proof["max_abs_logit_difference"], "merge.max_abs_logit_difference"
        rounding = proof.get("rounding")
        before = f" before rounding to {rounding['dtype']}" if rounding else ""
        detail = f"merged{before} against unmerged, {proof['n_tokens']} positions"
        cache.emit(
            GateResult(name, value, MERGE_LOGIT_TOLERANCE, value <= MERGE_LOGIT_TOLERANCE, detail, "merge")
        )
        if rounding:
            for gate in _rounding_gates(proof, rounding):
                cache.emit(gate)
        return proof

    inputs = {"base": base.digest, "adapter": adapter.digest, "rows": digest_of(content_of(rows))}
    modules = [*(registry.module_of("stages", name) for name in ("merge", "merge-proof")), TOKENIZER]
    return cache.stage("merge", inputs, run, modules)


def _rounding_gates(proof: dict[str, Any], rounding: dict[str, Any]) -> list[GateResult]:
    """The gates on a merge that is stored in 16 bits: rounded once, and at little cost."""
    wrong, total = rounding["wrong"], rounding["tensors"]
    detail = (
        f"{total} tensors are the merge, rounded once to {rounding['dtype']}; "
        f"relative error {rounding['relative_error']:.2g}"
    )
    if wrong:
        detail = f"{len(wrong)} tensors are not the merge rounded to {rounding['dtype']}, such as {wrong[0]}"
    cost, limit = proof["mean_kld_nats"], ROUNDING_KLD_NATS
    cause = (
        f"stored as {rounding['dtype']} against unmerged, {proof['n_tokens']} positions; rounding errors are "
        f"{rounding['update_error']:.0%} of the adapter's update"
    )
    return [
        GateResult("merge.rounding", 1 - len(wrong) / total, 1.0, not wrong, detail, "merge"),
        GateResult("merge.rounding_kld_nats", cost, limit, cost <= limit, cause, "merge"),
    ]


def prune(cache: Cache, request: Request, merged: StageOutput) -> StageOutput:
    """The merged model without its least influential layers; the same model when the target drops none."""
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

    inputs = {
        "model": merged.digest,
        "options": options.model_dump(),
        "rows": digest_of(content_of(rows)),
    }
    return cache.stage("prune", inputs, run, [registry.module_of("stages", "prune"), TOKENIZER])


def export(cache: Cache, request: Request, source: StageOutput, options: Export) -> Artifact:
    """One format of the target, step by step; each step uses the output of the previous one."""
    exporter: registry.Exporter = registry.load("exporters", options.format)
    rows, plain = calibration_rows(request), calibration_passages(request)
    quantize = request.target.quantize
    compared = quantize.compares_files and quantize.corrects_errors and options.format == "gguf"
    steps: list[StageOutput] = []
    outputs = [source.path]
    config = read_config(source.path)
    for step in exporter.steps(options):
        if step.left_out(config):
            continue
        before = steps[-1].digest if steps else source.digest

        def run(out: Path, work: Path, step: registry.ExportStep = step) -> None:
            from edgekit.models.tokenizer import ModelTokenizer

            tokenizer = ModelTokenizer(source.path)
            calibration = tokenizer.render_ids(rows)
            texts = windows(tokenizer, plain, count=quantize.calibration_texts) if plain else []
            out.mkdir()
            trial = of_build(request, tokenizer, rows) if compared else None
            context = ExportContext(source.path, calibration, request.threads, texts, quantize, trial)
            step.run(outputs[-1], out / step.output, context, cache.emit)

        inputs = {
            "input": before,
            "model": source.digest,
            "options": step.options,
            "output": step.output,
            "calibration": digest_of(content_of(rows)),
            "texts": digest_of(plain),
            "quantize": quantize.model_dump(),
            "threads": request.threads,
            **({"held_out": held_out_digest(request)} if compared else {}),
        }
        modules = [registry.module_of("exporters", options.format), *step.modules, TOKENIZER]
        if compared:
            modules += [registry.module_of("runtimes", name) for name in ("torch", exporter.runtime)]
        steps.append(cache.stage(step.stage, inputs, run, modules, step.packages))
        outputs.append(steps[-1].path / step.output)
    return Artifact(
        options.format, exporter.runtime, Path(outputs[-1]).name, tuple(steps), tuple(outputs[1:])
    )


def calibration_passages(request: Request) -> list[str]:
    """The passages of plain text that count beside the rows; none where calibration is turned off."""
    quantize = request.target.quantize
    return passages() if quantize.calibration_rows and quantize.calibration_texts else []


def calibration_rows(request: Request) -> Sequence[Row]:
    """The calibration rows: training rows spread over the whole set."""
    return evenly_spaced(request.data.train, request.target.quantize.calibration_rows)
