"""The runs of `edgekit eval ablate`: each is tuned, exported and asked through the stage cache, as a build is.

A run shares every stage with builds and runs of the same inputs, so a finished one is not made again, and an interrupted
one goes on from its last finished stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from edgekit.base.cache import Cache
from edgekit.base.errors import ConfigError
from edgekit.base.events import Alert, Emit, Progress, ignore
from edgekit.build import bundle, checks, robustness, stages
from edgekit.build.plan import plan
from edgekit.build.request import Order, Request
from edgekit.data.noise import FAMILIES
from edgekit.evaluation import ablation
from edgekit.evaluation.ablation import SCHEMA, Left, Part
from edgekit.evaluation.robust import CLEAN
from edgekit.evaluation.samples import SAMPLES, read_log, read_scored
from edgekit.models import source as model
from edgekit.proof.source import bring_in
from edgekit.targets.target import Target

if TYPE_CHECKING:
    from edgekit.evaluation.ablation import Measured

STAGE = "ablate"
ROBUST_PARTS = (
    Part("noise", ("tune.robustness.noise=[]",)),
    Part("phrasings", ("tune.robustness.phrased_share=0",)),
    Part("consistency", ("tune.robustness.consistency=0",)),
    Part("abstention", ('tune.robustness.abstain=""',)),
    Part("robust tuning", ("tune.robust=false",)),
)


@dataclass(frozen=True)
class Ablation:
    """What to run: the recipe with every part, the parts, whether to combine them, the seeds, and where."""

    order: Order
    parts: tuple[Part, ...] = ()
    grid: bool = False
    seeds: tuple[int, ...] = (7, 8, 9)
    rows: int = 0
    """Test rows asked with noise and in other phrasings; 0 takes as many as the target says."""
    ray: str = ""
    """The address of a Ray cluster; empty to run here, one after the other."""


@dataclass(frozen=True)
class Job:
    """One run."""

    left: Left
    seed: int
    order: Order


def default_parts(target: Target) -> tuple[Part, ...]:
    """The parts that the target has: those of robust tuning, pruning, the calibration and the quantization."""
    found = list(ROBUST_PARTS) if target.tune.robust else []
    if target.tune.rslora:
        found.append(Part("rslora", ("tune.rslora=false",)))
    if target.prune.drop_layers:
        found.append(Part("pruning", ("prune.drop_layers=0",)))
    if target.quantize.calibration_rows:
        found.append(Part("calibration", ("quantize.calibration_rows=0",)))
    match target.export[0].format:
        case "gguf":
            found.append(Part("quantization", ("export.0.type=F16", "export.0.tensor_types={}")))
        case "onnx":
            found.append(Part("quantization", ("export.0.precision=fp32",)))
    return tuple(found)


def run(asked: Ablation, emit: Emit) -> dict[str, Any]:
    """Make every run and compare them: the document of schema `edgekit.ablation/1`.

    Measured is the target's first format. Raises `ConfigError` for parts that change nothing, before anything is started.
    """
    import numpy as np

    whole = asked.order.request(emit)
    parts = asked.parts or default_parts(whole.target)
    order = replace(asked.order, changes=[*asked.order.changes, *_measuring(asked.rows)])
    jobs = [
        Job(left, seed, _leaving(order, [part for part in parts if part.name in left], seed))
        for left in ablation.runs(parts, grid=asked.grid)
        for seed in asked.seeds
    ]
    _check(order, parts)
    planned = plan(whole.source, whole.target, whole.data, cache_dir=whole.cache_dir, out=whole.cache_dir)
    planned.check(whole.arguments)
    model.fetch(whole.source, emit)
    found: dict[Left, list[dict[str, list[float]]]] = {}
    for done, (job, measured) in enumerate(_measured(jobs, asked.ray, emit), 1):
        found.setdefault(job.left, []).append(measured)
        emit(Progress(STAGE, done, len(jobs), "runs", _name(job)))
    arrays: dict[Left, Measured] = {
        left: {name: np.array([one[name] for one in by_seed], float) for name in ablation.MEASURES}
        for left, by_seed in found.items()
    }
    first = next(iter(arrays.values()))
    return {
        "schema": SCHEMA,
        "model": whole.source.name,
        "target": whole.target.name,
        "format": whole.target.export[0].format,
        "data": {"name": whole.data.name, "sha256": whole.data.digest},
        "seeds": list(asked.seeds),
        "grid": asked.grid,
        "n": {name: int(values.shape[1]) for name, values in first.items()},
        **ablation.summarize(arrays, parts),
    }


def _measuring(rows: int) -> list[str]:
    return ["evaluate.robust=true", *([f"evaluate.robust_rows={rows}"] if rows else [])]


def _leaving(order: Order, parts: Sequence[Part], seed: int) -> Order:
    changes = [change for part in parts for change in part.changes]
    return replace(order, changes=[*order.changes, *changes, f"tune.seed={seed}"])


def _check(order: Order, parts: Sequence[Part]) -> None:
    """Raise `ConfigError` where there are no parts, or where one changes nothing."""
    if not parts:
        raise ConfigError("There is no part to leave out. Nothing was started.", "Name one with --part.")
    seed = 0
    whole = _leaving(order, [], seed).request().target
    for part in parts:
        if _leaving(order, [part], seed).request().target == whole:
            raise ConfigError(
                f"The part '{part.name}' changes nothing: the target already has {', '.join(part.changes)}. Nothing was started.",
                "Turn it on in the target or with --set, or leave it out of --part.",
            )


def _measured(jobs: Sequence[Job], address: str, emit: Emit) -> Iterator[tuple[Job, dict[str, list[float]]]]:
    """Each job with what was measured, in their order; on a Ray cluster several at once."""
    if address:
        from edgekit.build.ray_jobs import spread

        yield from zip(jobs, spread(measure, [job.order for job in jobs], address), strict=True)
        return
    for number, job in enumerate(jobs, 1):
        emit(Alert("info", f"Run {number} of {len(jobs)}: {_name(job)}."))
        yield job, measure(job.order, emit)


def _name(job: Job) -> str:
    without = f"without {' and '.join(sorted(job.left))}" if job.left else "every part"
    return f"{without}, seed {job.seed}"


def measure(order: Order, emit: Emit = ignore) -> dict[str, list[float]]:
    """Tune, export and ask one run: the share of right answers of each row as it is, with noise, and in other phrasings."""
    request = order.request()
    request = replace(request, source=model.fetch(request.source, emit))
    cache = Cache(request.cache_dir, emit)
    base = bring_in(cache, request.source)
    merged = stages.merge(cache, request, base, stages.tune(cache, request, base))
    pruned = stages.prune(cache, request, merged)
    artifact = stages.export(cache, request, pruned, request.target.export[0])
    longest = bundle.longest_answer(request, checks.tokenizer_of(pruned))
    subject = robustness.Subject(artifact.format, artifact.digest, artifact.runtime, artifact.path)
    answers = checks.evaluate(
        cache, request, artifact.format, artifact.digest, artifact.runtime, artifact.path, longest
    )
    asked = robustness.measure(cache, request, subject, answers, longest)
    for gate in cache.gates:
        if not gate.passed:
            emit(Alert("warning", f"The gate {gate.name} failed: {gate.detail}.", "Do not trust this run."))
    return _by_row(request, read_log(answers.path / SAMPLES), read_scored(asked.path / SAMPLES))


def _by_row(request: Request, clean: dict[str, bool], asked: Sequence[Any]) -> dict[str, list[float]]:
    """The mean over the variants of each kind, row by row."""
    kinds: dict[str, dict[str, list[bool]]] = {"noise": {}, "phrasings": {}}
    for one in asked:
        if one.variant != CLEAN:
            kind = kinds["noise" if one.variant in FAMILIES else "phrasings"]
            kind.setdefault(one.id, []).append(one.correct)
    return {
        "clean": [float(clean[row.id]) for row in request.data.test],
        **{name: [sum(each) / len(each) for each in rows.values()] for name, rows in kinds.items()},
    }
