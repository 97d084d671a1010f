"""The stages that ask some test rows with noise and in other phrasings, and the gates on what a file loses there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base.artifacts import digest_of
from edgekit.base.cache import Cache, StageOutput
from edgekit.base.events import GateResult
from edgekit.build.checks import counting_for
from edgekit.build.request import Request
from edgekit.data.rows import content_of, evenly_spaced
from edgekit.evaluation.compare import Change, change
from edgekit.evaluation.samples import SAMPLES, read_samples, read_scored
from edgekit.proof import gates
from edgekit.report.outcome import Artifact


@dataclass(frozen=True)
class Subject:
    """A model that is measured: the tuned one or a file, with the digest of its stage and its runtime."""

    name: str
    digest: str
    runtime: str
    path: Path


def measure(
    cache: Cache, request: Request, subject: Subject, answers: StageOutput, max_tokens: int
) -> StageOutput:
    """A short form of `edgekit eval robust`: its document and, in the stage's folder, every sample.

    The rows as they are were asked for `answers`, the accuracy of the same model, and are not asked again.
    """
    name, options = f"robust.{subject.name}", request.target.evaluate
    rows = evenly_spaced(request.data.test, options.robust_rows)
    abstaining = request.abstaining

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.evaluation import robust
        from edgekit.evaluation.kept import Kept

        kept = Kept(work / SAMPLES, "", cache.emit)  # the folder belongs to this key alone
        chosen = {row.id for row in rows}
        kept.add([one for one in read_samples(answers.path / SAMPLES) if one["id"] in chosen])
        opened = registry.load("runtimes", subject.runtime)(subject.path, threads=request.threads)
        out.mkdir()
        try:
            return robust.evaluate(
                opened,
                rows,
                robust.Noise(tuple(options.robust_families)),
                robust.Asking(max_tokens, abstaining),
                log=out / SAMPLES,
                kept=kept,
                emit=counting_for(name, cache.emit),
            )
        finally:
            opened.close()

    inputs = {
        "model": subject.digest,
        "answers": answers.digest,
        "rows": digest_of(content_of(rows)),
        "families": options.robust_families,
        "max_tokens": max_tokens,
        "abstaining": abstaining,
        "threads": request.threads,
    }
    modules = ["edgekit.evaluation.robust", registry.module_of("runtimes", subject.runtime)]
    return cache.stage(name, inputs, run, modules)


def limits(
    request: Request, artifact: Artifact, tuned: StageOutput, measured: StageOutput
) -> list[GateResult]:
    """The gates that the target sets on what `artifact` loses with noise and in other phrasings."""
    budget, last = request.target.budget, artifact.steps[-1].name
    found = []
    if budget.robust_drop_points is not None:
        limit = budget.robust_drop_points
        found.append(gates.robust_drop(changes(tuned, measured), limit, artifact.format, last))
    if budget.robust_drop_rate is not None:
        limit, (noise, before) = budget.robust_drop_rate, (each.result["noise"] for each in (measured, tuned))
        stage = last if before["pdr"] is not None and before["pdr"] <= limit else "tune"
        found.append(gates.drop_rate(noise, measured.result["n"], limit, artifact.format, stage))
    return found


def changes(before: StageOutput, after: StageOutput) -> dict[str, Change]:
    """The change of each variant of the rows from one model to another."""
    first, second = (read_scored(stage.path / SAMPLES) for stage in (before, after))
    variants = dict.fromkeys(one.variant for one in first)
    return {
        variant: change(
            *({one.id: one.correct for one in log if one.variant == variant} for log in (first, second))
        )
        for variant in variants
    }
