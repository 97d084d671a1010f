"""The pipeline from a model and rows to a proven bundle: the list of stages.

    model ─ tune ─ merge ─ prune ─┬─ export.gguf ─ quantize.gguf ─┬─ verify ─ eval ─ robust ─ profile ─ bundle
                                  └─ export.onnx ─────────────────┘

Each stage is a function in `edgekit.build.stages`, which makes something, or `edgekit.build.checks`, which compares it
with its reference. `edgekit.base.cache` keeps the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgekit import registry
from edgekit.base.cache import Cache
from edgekit.base.errors import EdgekitError
from edgekit.base.events import Emit, fan_out, jsonl_writer
from edgekit.build import bundle, calibrate, checks, robustness, runs, stages
from edgekit.build.plan import plan
from edgekit.build.request import Request
from edgekit.models import source as model
from edgekit.proof.source import bring_in
from edgekit.report.assemble import assemble
from edgekit.report.outcome import Outcome
from edgekit.targets.target import Target


def build(request: Request, emit: Emit) -> dict[str, Any]:
    """Run every unfinished stage and write the bundle; returns its `report.json`.

    A failed gate does not raise: the verdict of the report is then `fail`. Raises `EdgekitError` when a stage fails;
    finished stages are kept. Raises `ConfigError` when another build runs in the same cache. Other processes can follow
    the build through `edgekit.build.runs`.
    """
    with runs.recorded(request, stage_names(request.target, _config(request))) as record:
        report = _build(request, fan_out(emit, record.emit), record)
        record.judge(report)
    return report


def _config(request: Request) -> dict[str, Any]:
    """The model's config where it is on this machine and can be read, else an empty one; `plan` reports what is wrong."""
    try:
        return model.describe(request.source) if request.source.path else {}
    except EdgekitError:
        return {}


def stage_names(target: Target, config: Mapping[str, Any]) -> list[str]:
    """Every stage of a build for `target` of a model with this `config.json`, in order."""
    formats = [export.format for export in target.export]
    pruned = target.prune.drop_layers > 0
    steps = [
        step.stage
        for export in target.export
        for step in registry.load("exporters", export.format).steps(export)
        if not step.left_out(config)
    ]
    return [
        *("model", "tune", "merge", *(["prune"] if pruned else []), *steps),
        *("reference", "drift.model", *(["drift.prune"] if pruned else [])),
        *(f"verify.{format}" for format in formats),
        *(f"eval.{name}" for name in ("base", "tuned", *formats, "base_few_shot")),
        *(f"robust.{name}" for name in ("tuned", *formats) if target.evaluate.robust),
        *(
            f"{kind}.{format}"
            for kind in ("golden", "signals", "calibration", "profile")
            for format in formats
        ),
    ]


def _build(request: Request, emit: Emit, record: runs.Recorder) -> dict[str, Any]:
    planned = plan(
        request.source, request.target, request.data, cache_dir=request.cache_dir, out=request.out.parent
    )
    planned.check(request.arguments)
    request = replace(
        request, source=model.fetch(request.source, emit)
    )  # after the check of the free disk space
    bundle.check_free(request)
    record.begin()
    record.expect(planned.minutes_expected * 60)
    log = request.cache_dir / runs.EVENTS
    cache = Cache(request.cache_dir, fan_out(emit, jsonl_writer(log)))

    base = bring_in(cache, request.source)
    adapter = stages.tune(cache, request, base)
    merged = stages.merge(cache, request, base, adapter)
    pruned = stages.prune(cache, request, merged)
    artifacts = [stages.export(cache, request, pruned, options) for options in request.target.export]
    weights = model.parameter_count(model.read_config(pruned.path))
    budget = request.target.budget.for_model(weights)
    request = replace(request, target=request.target.model_copy(update={"budget": budget}))

    reference = checks.capture(cache, request, merged)
    tuned, whole = checks.drift(cache, request, reference, base), checks.merge_drift(merged)
    drift = {"model": tuned, "tune": whole, "merge": whole}
    from_input = {"tune": tuned, "merge": whole}
    if pruned is not merged:
        drift["prune"] = from_input["prune"] = checks.drift(cache, request, reference, pruned)
    proofs = [checks.verify(cache, request, reference, merged, pruned, artifact) for artifact in artifacts]

    tokenizer = checks.tokenizer_of(pruned)
    longest = bundle.longest_answer(request, tokenizer)
    variants = [("base", base.digest, "torch", base.path), ("tuned", merged.digest, "torch", merged.path)]
    variants += [
        (artifact.format, artifact.digest, artifact.runtime, artifact.path) for artifact in artifacts
    ]
    answers = {variant[0]: checks.evaluate(cache, request, *variant, longest) for variant in variants}
    answers["base_few_shot"] = checks.evaluate_few_shot(cache, request, base, longest)
    cache.emit(checks.gain(request, answers))
    robust = {
        subject.name: robustness.measure(cache, request, subject, answers[subject.name], longest)
        for subject in (robustness.Subject(*variant) for variant in variants if variant[0] != "base")
        if request.target.evaluate.robust
    }
    golden = [checks.golden_answers(cache, request, artifact, longest) for artifact in artifacts]
    system = bundle.shared_system(request)
    signals = [checks.signals(cache, request, artifact, system, longest) for artifact in artifacts]
    calibrations = [calibrate.calibration(cache, request, artifact) for artifact in artifacts]
    speeds = [checks.profile(cache, request, artifact) for artifact in artifacts]
    for artifact, speed in zip(artifacts, speeds, strict=True):
        change = checks.changed(answers["tuned"], answers[artifact.format])
        for gate in checks.budget_gates(request, artifact, change, speed):
            cache.emit(gate)
        if robust:
            for gate in robustness.limits(request, artifact, robust["tuned"], robust[artifact.format]):
                cache.emit(gate)

    outcome = Outcome(
        model=request.source.name,
        target=request.target,
        parameters=weights,
        made=[base, adapter, merged, pruned],
        artifacts=artifacts,
        drift=drift,
        from_input=from_input,
        proofs=proofs,
        answers=answers,
        robustness=robust,
        golden=golden,
        signals=signals,
        calibrations=calibrations,
        speeds=speeds,
        facts=cache.facts,
    )
    report = assemble(outcome)
    bundle.write(request, tokenizer, outcome, report, cache, log)
    return report
