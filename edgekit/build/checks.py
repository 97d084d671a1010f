"""The stages that compare a result with its reference: proofs, drift, accuracy, speed, and their gates.

The reference is the tuned, merged fp32 model with its answers to held-out prompts, which were not used for tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import registry
from edgekit.base.artifacts import digest_of, size_of
from edgekit.base.cache import Cache, StageOutput
from edgekit.base.events import Alert, Emit, Event, GateResult, Progress
from edgekit.base.memory import give_back
from edgekit.build.bundle import longest_answer
from edgekit.build.request import Request
from edgekit.build.trial import PROVEN_ROWS
from edgekit.data.rows import content_of, contents_of
from edgekit.evaluation import few_shot
from edgekit.evaluation.compare import Change, change
from edgekit.evaluation.samples import SAMPLES, read_log
from edgekit.models.source import read_config
from edgekit.proof import bare, gates, golden, held_out, prove
from edgekit.proof.deviations import Deviation
from edgekit.proof.drift import Drift, Scored, score
from edgekit.proof.facts import ReferenceFacts
from edgekit.proof.held_out import HeldOut
from edgekit.proof.texts import TEXTS
from edgekit.report.outcome import Artifact, Proof
from edgekit.report.summary import conditions

if TYPE_CHECKING:
    from edgekit.models.tokenizer import ModelTokenizer

SAME_NATS = 1e-5  # two float32 evaluations of one model differ by less; 4 bits cost a thousand times that


def tokenizer_of(model: StageOutput) -> ModelTokenizer:
    """The reference tokenizer of a model stage's folder."""
    from edgekit.models.tokenizer import ModelTokenizer

    return ModelTokenizer(model.path)


def capture(cache: Cache, request: Request, model: StageOutput, *, conversations: bool = True) -> StageOutput:
    """Store the model's next-token distributions on plain text and on its own answers to held-out prompts.

    The prompts come from the validation rows and, if they are few, the test rows, which were not used for tuning. With
    `conversations` false there are no prompts.
    """
    rows = [*request.data.validation, *request.data.test][:PROVEN_ROWS] if conversations else []
    prompts = [row.messages[:-1] for row in rows]
    tokenizer = tokenizer_of(model)
    max_tokens = longest_answer(request, tokenizer)

    def run(out: Path, work: Path) -> None:
        runtime = registry.load("runtimes", "torch")(model.path, threads=request.threads)
        try:
            own = held_out.capture_own(runtime, tokenizer, prompts, TEXTS, max_tokens, cache.emit)
        finally:
            runtime.close()
        out.mkdir()
        own.save(out)

    inputs = {
        "model": model.digest,
        "rows": digest_of(content_of(rows)),
        "texts": TEXTS,
        "max_tokens": max_tokens,
        "threads": request.threads,
    }
    modules = ["edgekit.proof.held_out", "edgekit.models.tokenizer", _runtime("torch")]
    return cache.stage("reference", inputs, run, modules)


def drift(cache: Cache, request: Request, reference: StageOutput, model: StageOutput) -> Drift:
    """The drift of a Hugging Face folder against the reference."""
    name = f"drift.{model.name}"

    def run(out: Path, work: Path) -> dict[str, Any]:
        store = HeldOut.load(reference.path)
        scored = _score(request, store, "torch", model.path, cache, name)
        return asdict(scored.among(store.conversations(scored)))

    inputs = {"reference": reference.digest, "model": model.digest, "threads": request.threads}
    modules = ["edgekit.proof.held_out", "edgekit.proof.drift", _runtime("torch")]
    return Drift(**cache.stage(name, inputs, run, modules).result)


def _runtime(name: str) -> str:
    """The module of the runtime `name`."""
    return registry.module_of("runtimes", name)


def merge_drift(merged: StageOutput) -> Drift:
    """The drift of the merged model from the base with its adapter unmerged, as the merge proved it."""
    return Drift(
        **{name: merged.result[name] for name in Drift.__dataclass_fields__ if name in merged.result}
    )


def _score(request: Request, store: HeldOut, runtime: str, path: Path, cache: Cache, stage: str) -> Scored:
    opened = registry.load("runtimes", runtime)(path, threads=request.threads)
    try:
        return score(opened, store.reference, cache.emit, stage=stage)
    finally:
        opened.close()
        give_back()  # the file is opened again, by a child process


def verify(
    cache: Cache,
    request: Request,
    reference: StageOutput,
    tuned: StageOutput,
    source: StageOutput,
    artifact: Artifact,
) -> Proof:
    """Open the artifact in its own runtime and compare it with the reference; every check becomes a gate.

    `reference` holds what the model `tuned` answers; `source` is the folder that was exported, whose tokenizer,
    template, stop ids and weights count: the tuned model, or what pruning made of it.
    """
    name, budget = f"verify.{artifact.format}", request.target.budget
    first, last = artifact.steps[0].name, artifact.steps[-1].name
    rows = request.data.validation[:PROVEN_ROWS]
    contents = list(contents_of(row.messages for row in request.data.all_rows))

    def run(out: Path, work: Path) -> dict[str, Any]:
        store = HeldOut.load(reference.path)
        scored = {
            step.name: _score(request, store, artifact.runtime, path, cache, name)
            for step, path in zip(artifact.steps, artifact.outputs, strict=True)
        }
        drifts = {step: at.among(store.main(at)) for step, at in scored.items()}
        guilty = next(
            (step for step, found in drifts.items() if found.mean_kld_nats > budget.mean_kld_nats), last
        )
        subject = prove.Subject(artifact.path, artifact.format, artifact.runtime)
        static = prove.weights(subject, source.path, counting_for(name, cache.emit), last)
        entered = _from_input(cache, request, store, drifts, tuned, source, artifact)
        facts = ReferenceFacts.of(
            tokenizer_of(source),
            [row.answer for row in rows],
            [row.messages[:-1] for row in rows],
            contents,
        )
        give_back()
        runtime = subject.open(request.threads)
        try:
            found = prove.opened(
                runtime,
                prove.Expected(facts, store, budget, own=True),
                scored[last],
                artifact.format,
                text_stage=first,
                drift_stage=guilty,
            )
            without_edgekit = bare.compare(runtime, facts)
        finally:
            runtime.close()
        if without_edgekit:
            found.gates.append(without_edgekit.gate(artifact.format, first))
        for gate in [*(static.gates if static else []), *prove.with_culprits(found.gates, static)]:
            cache.emit(gate)
        return {
            "bare_runtime": without_edgekit.to_json() if without_edgekit else None,
            "deviations": [deviation.to_json() for deviation in found.deviations],
            "drift": {step: asdict(found) for step, found in drifts.items()},
            "from_input": {step: asdict(found) for step, found in entered.items()},
        }

    inputs = {
        "reference": reference.digest,
        "artifact": {step.name: step.digest for step in artifact.steps},
        "source": source.digest,
        "tuned": tuned.digest,
        "rows": request.data.digest,
        "budget": budget.model_dump(),
        "threads": request.threads,
    }
    modules = [
        "edgekit.proof.prove",
        "edgekit.models.tokenizer",
        _runtime(artifact.runtime),
        _runtime("torch"),
    ]
    modules += [
        registry.module_of(kind, artifact.format)
        for kind in ("proofs", "exporters")
        if artifact.format in registry.names(kind)
    ]
    stage = cache.stage(name, inputs, run, modules)
    for each in stage.result["deviations"]:
        cache.emit(Alert("info", f"Deviation of the {artifact.format.upper()} file: {Deviation(**each)}"))
    return Proof(
        stage,
        *(
            {step: Drift(**found) for step, found in stage.result[kind].items()}
            for kind in ("drift", "from_input")
        ),
    )


def verify_adapter(
    cache: Cache, request: Request, reference: StageOutput, artifact: Artifact, base: Path, adapter: Path
) -> None:
    """Compare the exported `base` with the adapter file `adapter` with the merged model, like a merged file.

    `reference` holds the answers of the merged model; the gates have names like `gguf.adapter_greedy_agreement`.
    """
    name = f"verify.{artifact.format}.adapter"
    store = HeldOut.load(reference.path)
    runtime = registry.load("runtimes", artifact.runtime)(base, threads=request.threads)
    try:
        runtime.use(adapter)
        scored = score(runtime, store.reference, cache.emit, stage=name)
        found = prove.behaviour(
            runtime.stop_ids,
            store,
            scored,
            request.target.budget,
            artifact.format,
            text_stage="export.adapter",
            drift_stage="export.adapter",
        )
    finally:
        runtime.close()
    for gate in found:
        format, _, what = gate.name.rpartition(".")
        cache.emit(replace(gate, name=f"{format}.adapter_{what}"))


def counting_for(stage: str, emit: Emit) -> Emit:
    """An `emit` that shows progress as that of `stage`, where a gate blames another."""

    def renamed(event: Event) -> None:
        emit(replace(event, stage=stage) if isinstance(event, Progress) else event)

    return renamed


def _from_input(
    cache: Cache,
    request: Request,
    store: HeldOut,
    drifts: dict[str, Drift],
    tuned: StageOutput,
    source: StageOutput,
    artifact: Artifact,
) -> dict[str, Drift]:
    """The drift of each step from its input: the exported folder, then the previous step."""
    inputs = [("torch", source.path), *((artifact.runtime, path) for path in artifact.outputs)]
    entered: dict[str, Drift] = {}
    is_tuned = source.path == tuned.path
    for step, (runtime, before), after in zip(artifact.steps, inputs, artifact.outputs, strict=False):
        if is_tuned:  # the same comparison
            entered[step.name] = drifts[step.name]
            is_tuned = drifts[step.name].mean_kld_nats < SAME_NATS
            continue
        name = f"verify.{artifact.format}"
        opened = registry.load("runtimes", runtime)(before, threads=request.threads)
        known = held_out.capture_passages(opened, store.passages, cache.emit, stage=name)
        opened.close()
        scored = _score(request, known, artifact.runtime, after, cache, name)
        entered[step.name] = scored.among(known.main(scored))
    return entered


def evaluate(
    cache: Cache, request: Request, name: str, digest: str, runtime: str, path: Path, max_tokens: int
) -> StageOutput:
    """Exact-match accuracy of one model on the test rows, greedy; the samples are in the stage's folder."""
    rows = request.data.test

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.evaluation.accuracy import evaluate as evaluate_rows

        opened = registry.load("runtimes", runtime)(path, threads=request.threads)
        out.mkdir()
        try:
            return evaluate_rows(
                opened,
                rows,
                max_tokens=max_tokens,
                log=out / SAMPLES,
                emit=cache.emit,
                stage=f"eval.{name}",
            )
        finally:
            opened.close()

    inputs = {
        "model": digest,
        "rows": digest_of(content_of(rows)),
        "max_tokens": max_tokens,
        "threads": request.threads,
    }
    return cache.stage(f"eval.{name}", inputs, run, ["edgekit.evaluation.accuracy", _runtime(runtime)])


def evaluate_few_shot(cache: Cache, request: Request, base: StageOutput, max_tokens: int) -> StageOutput:
    """Accuracy of the base on a sample of the test rows, with an explanation and training rows as examples."""
    rows, train = few_shot.sample(request.data.test), request.data.train
    name = "eval.base_few_shot"

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.evaluation.accuracy import evaluate as evaluate_rows

        made_for = read_config(base.path).get("max_position_embeddings") or few_shot.CONTEXT
        context = min(few_shot.CONTEXT, made_for)

        opened = registry.load("runtimes", "torch")(base.path, threads=request.threads)
        out.mkdir()
        try:
            shots = few_shot.prepare(opened, train, rows, max_tokens, context)
            log, emit = out / SAMPLES, cache.emit
            return evaluate_rows(
                opened, rows, max_tokens=max_tokens, log=log, emit=emit, stage=name, shots=shots
            )
        finally:
            opened.close()

    inputs = {
        "model": base.digest,
        "rows": digest_of(content_of(rows)),
        "train": digest_of(content_of(train)),
        "max_tokens": max_tokens,
        "threads": request.threads,
    }
    return cache.stage(name, inputs, run, ["edgekit.evaluation.accuracy", _runtime("torch")])


def gain(request: Request, answers: Mapping[str, StageOutput]) -> GateResult:
    """The gate on the gain from tuning, compared with the better of the two measurements of the base."""
    bare, shown = answers["base"], answers["base_few_shot"]
    shots = shown.result["shots"]
    better, how = bare, "prompted like the tuned model"
    if shown.result["accuracy"] > bare.result["accuracy"]:
        better, how = shown, f"with an explanation of the task and {shots} examples in its prompt"
    return gates.accuracy_gain(changed(better, answers["tuned"]), how, request.target.budget)


def changed(before: StageOutput, after: StageOutput) -> Change:
    """The changes between two evaluations, over their common rows."""
    return change(*(read_log(stage.path / SAMPLES) for stage in (before, after)))


def golden_answers(cache: Cache, request: Request, artifact: Artifact, max_tokens: int) -> StageOutput:
    """Record the artifact's answers to held-out prompts, to compare them on every device of the bundle."""
    name = f"golden.{artifact.format}"
    prompts = [row.messages[:-1] for row in request.data.validation]

    def run(out: Path, work: Path) -> dict[str, Any]:
        opened = registry.load("runtimes", artifact.runtime)(artifact.path, threads=request.threads)
        try:
            return golden.capture(opened, prompts, max_tokens, cache.emit, stage=name)
        finally:
            opened.close()

    inputs = {
        "artifact": artifact.digest,
        "rows": digest_of(content_of(request.data.validation)),
        "max_tokens": max_tokens,
        "threads": request.threads,
    }
    return cache.stage(name, inputs, run, ["edgekit.proof.golden", _runtime(artifact.runtime)])


def signals(
    cache: Cache, request: Request, artifact: Artifact, system: str | None, max_tokens: int
) -> StageOutput:
    """Record the distributions of the artifact's answers to held-out rows, as the reference for drift on a device."""
    name = f"signals.{artifact.format}"

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.device.loaded import LoadedModel
        from edgekit.field.telemetry import reference

        opened = registry.load("runtimes", artifact.runtime)(artifact.path, threads=request.threads)
        with LoadedModel(opened, format=artifact.format, system=system, max_tokens=max_tokens) as model:
            data = request.data
            found = reference.capture(model, data.validation, data.train, cache.emit, stage=name)
            return {"signals": found.to_json(), "sure": found.sure}

    inputs = {
        "artifact": artifact.digest,
        "rows": digest_of([content_of(rows) for rows in (request.data.validation, request.data.train)]),
        "system": system,
        "max_tokens": max_tokens,
        "threads": request.threads,
    }
    modules = ["edgekit.device.loaded", "edgekit.field.telemetry.reference", _runtime(artifact.runtime)]
    return cache.stage(name, inputs, run, modules)


def profile(cache: Cache, request: Request, artifact: Artifact) -> StageOutput:
    """Speed and memory of the artifact, in new processes on this machine."""
    from edgekit.base.hardware import fingerprint

    machine = fingerprint()
    device = request.target.device

    def run(out: Path, work: Path) -> dict[str, Any]:
        entries = registry.load("profiles", "profile")(
            artifact.path, artifact.runtime, request.target.profile, device=device, emit=cache.emit
        )
        return {"entries": entries}

    inputs = {
        "artifact": artifact.digest,
        "options": request.target.profile.model_dump(),
        "device": device.model_dump(),
        "machine": machine,
    }
    modules = [registry.module_of("profiles", "profile"), _runtime(artifact.runtime)]
    return cache.stage(f"profile.{artifact.format}", inputs, run, modules)


def budget_gates(
    request: Request, artifact: Artifact, change: Change, speed: StageOutput
) -> list[GateResult]:
    """The gates on a whole artifact: size, memory, speed, and the change from the tuned model."""
    budget, last = request.target.budget, artifact.steps[-1].name
    found = [gates.accuracy_drop(change, budget, artifact.format, last)]
    if budget.size_mib is not None:
        found.append(gates.size(size_of(artifact.path), budget.size_mib, artifact.format, last))
    entries = speed.result["entries"]
    if budget.peak_rss_mib is not None:
        largest = max(entries, key=lambda entry: float(entry["peak_rss_mib"]))
        peak = gates.peak_rss(largest["peak_rss_mib"], budget.peak_rss_mib, artifact.format, last)
        found.append(replace(peak, detail=conditions(largest)))
    threads = request.target.device.threads
    device = min(entries, key=lambda entry: abs(entry["threads"] - threads))
    if budget.ttft_ms is not None:
        first = gates.ttft(device["ttft_ms"]["median"], budget.ttft_ms, artifact.format, last)
        found.append(replace(first, detail=conditions(device)))
    if budget.decode_tokens_per_s is not None:
        rate = device["decode_tokens_per_s"]["median"]
        decoded = gates.decode_speed(rate, budget.decode_tokens_per_s, artifact.format, last)
        found.append(replace(decoded, detail=conditions(device)))
    return found
