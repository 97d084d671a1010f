"""The stage that fits the temperature of an artifact, and the thresholds below which a device gives no answer by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base.artifacts import digest_of
from edgekit.base.cache import Cache, StageOutput
from edgekit.base.errors import ConfigError
from edgekit.build.request import Request
from edgekit.data.out_of_scope import is_out_of_scope
from edgekit.data.rows import Row, content_of, evenly_spaced
from edgekit.evaluation.choices import candidates
from edgekit.report.outcome import Artifact

# One number is fitted, for which 64 rows suffice. Each is scored with each label, and each score takes about as long as an
# answer: at most 1,024 take as long as the accuracy on a thousand test rows.
MOST_ROWS = 64
MOST_LABELS = 32
MOST_SCORES = 1024


def calibration(cache: Cache, request: Request, artifact: Artifact) -> StageOutput:
    """Fit the artifact's temperature on validation rows, if the answers are few labels.

    The result has `labels`, those of them that mean "out of scope" as `abstaining`, `temperature`, `rows`, the figures of these
    rows `before` and `after`, and the thresholds that a device uses by itself: `threshold` of the confidence and
    `scope_threshold` of the largest score of the other labels. Each refuses at most 5 % of the rows in scope, and is None without
    any. For free answers it has `refused`, the reason.
    """
    name = f"calibration.{artifact.format}"
    labels, refused = labels_of(request)
    rows = _rows(request.data.validation, labels)
    if labels and not rows:
        labels, refused = [], "No answer of the validation rows is an answer of the training rows."
    covered = {
        row.answer.strip() for row in request.data.train if not is_out_of_scope(row, request.abstaining)
    }
    abstaining = [label for label in labels if label not in covered]
    within = [not is_out_of_scope(row, request.abstaining) and row.answer.strip() in covered for row in rows]

    def run(out: Path, work: Path) -> dict[str, Any]:
        from edgekit.evaluation import calibration as evaluation
        from edgekit.evaluation.choices import score

        if refused:
            return {"refused": refused}
        opened = registry.load("runtimes", artifact.runtime)(artifact.path, threads=request.threads)
        try:
            scored = score(opened, rows, labels, cache.emit, name)
        finally:
            opened.close()
        known = [label not in abstaining for label in labels]
        return {"labels": labels, "abstaining": abstaining, **evaluation.fitted(scored, known, within)}

    inputs = {
        "artifact": artifact.digest,
        "rows": digest_of(content_of(rows)),
        "labels": labels,
        "refused": refused,
        "abstaining": abstaining,
        "within": within,
        "threads": request.threads,
    }
    modules = ["edgekit.evaluation.calibration", registry.module_of("runtimes", artifact.runtime)]
    return cache.stage(name, inputs, run, modules)


def labels_of(request: Request) -> tuple[list[str], str]:
    """The answers among which the model chooses, that of robust tuning to requests out of scope included; or why there are none."""
    train, tune = request.data.train, request.target.tune
    try:
        labels = candidates(train)
    except ConfigError as error:
        return [], error.message
    if (
        tune.robust
        and tune.robustness.out_of_scope_share > 0
        and tune.robustness.abstain
        and request.abstaining
    ):
        labels = sorted({*labels, request.abstaining.strip()})
    if len(labels) > MOST_LABELS:
        return (
            [],
            f"The training rows have {len(labels)} different answers; a temperature is fitted for at most {MOST_LABELS}.",
        )
    return labels, ""


def _rows(rows: Sequence[Row], labels: Sequence[str]) -> list[Row]:
    """Rows whose answers are labels, spread over all of them, as many as are scored in a reasonable time."""
    known = [row for row in rows if row.answer.strip() in set(labels)]
    return evenly_spaced(known, min(MOST_ROWS, MOST_SCORES // max(1, len(labels))))
