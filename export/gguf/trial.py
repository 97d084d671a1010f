"""Quantized files made on trial: each is compared with the float model on held-out text, and the best one is kept.

Each calibration set makes a file, and the set whose file drifts least is kept. With a largest divergence the size follows
from what was measured:

    fewest bytes within an estimated divergence ──► rounding ──► measured divergence
         ▲                                                            │
         └── the limit of the estimate, times allowed over measured ◄─┘
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

from edgekit.base.errors import GateError
from edgekit.base.events import Alert, Emit, Event, Progress, ignore
from edgekit.export.gguf.comparison import Comparison
from edgekit.export.gguf.fit import Draft, Estimates, Fitted, Try, texts_of
from edgekit.export.weights.allocation import Plan
from edgekit.proof.drift import divergences
from edgekit.registry import ExportContext
from edgekit.targets.target import GgufExport

TRIES = 3  # files that a largest divergence may take, beside one of each further calibration set
CLOSE = 0.93  # of the largest divergence: another try would save some 1 % of the bytes
# Of the largest divergence. What is measured falls a little less than its estimate; the last try, when none held it, is more
# careful.
AIM, LAST_AIM = 0.94, 0.9
LEAST_FOLLOWED = 0.5  # change of a divergence over that of its estimate, both as logarithms
LEAST = 1e-9  # nats: its logarithm is a number


def search(out: Path, options: GgufExport, context: ExportContext, emit: Emit = ignore) -> Fitted:
    """Write the best file of the context's trial as the new GGUF file `out`.

    With `max_kld_nats` in the context's `quantize` it is the smallest, of at most three tries, that holds it on each kind of
    held-out text; else the one with the least divergences, by the sum of their logarithms. Raises `GateError` when that
    exceeds a limit of the trial, and as `fit` does; there is no `out` then.
    """
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".tries-") as folder:
        trial = _Trial(Path(folder), options, context, emit)
        best = trial.best_set()
        if trial.largest is not None:
            best = trial.smaller(best)
        if best.worst > 1:
            raise trial.refusal(best)
        os.replace(best.file, out)
    return replace(
        best.fitted,
        calibration=best.tried.calibration,
        mean_kld_nats=best.tried.mean_kld_nats,
        tries=[made.tried for made in trial.made],
    )


@dataclass(frozen=True)
class _Made:
    """A file that was tried."""

    file: Path
    fitted: Fitted
    tried: Try
    plan: Plan | None
    worst: float
    """The largest of its divergences as a share of their limits; 0 without limits."""

    @property
    def drift(self) -> tuple[bool, float]:
        """What is smaller for the better of two files of one size: whether it exceeds a limit, then its divergences."""
        measured = self.tried.mean_kld_nats.values()
        return self.worst > 1, sum(log(max(each, LEAST)) for each in measured)

    @property
    def size(self) -> tuple[bool, float]:
        """What is smaller for the better of two files of different size."""
        return self.worst > 1, self.tried.bytes if self.worst <= 1 else self.worst


class _Trial:
    """The files of one model that were tried, in `folder`."""

    def __init__(self, folder: Path, options: GgufExport, context: ExportContext, emit: Emit) -> None:
        trial = context.trial
        assert trial is not None
        self.made: list[_Made] = []
        self._folder, self._emit = folder, emit
        self._draft = Draft(options, context, self._labelled)
        quantize = self._draft.quantize
        self.largest = quantize.max_kld_nats if options.leaves_types_open else None
        self._limits: Mapping[str, float] = trial.limits
        if self.largest is not None:
            self._limits = dict.fromkeys(trial.held_out, self.largest)
        self._texts = {name: texts_of(kinds) for name, kinds in trial.sets.items()}
        self._most = len(self._texts) + (TRIES - 1) * (self.largest is not None)
        self._estimates: dict[str, Estimates] = {}
        self._comparison = Comparison(context.model, trial.held_out, context.threads, emit)

    def best_set(self) -> _Made:
        """Of one file with each calibration set, all of one size, the one that drifts least."""
        for name, texts in self._texts.items():
            if self._draft.is_limited or self.largest is not None:
                self._estimates[name] = self._draft.estimates(texts)
            self._make(name, self._first_plan(name))
        return self._keep(min(self.made, key=lambda made: made.drift))

    def _first_plan(self, name: str) -> Plan | None:
        """The types of the first file with the calibration set `name`; None where llama.cpp chooses them."""
        if self.largest is None:
            return self._draft.allocated(self._estimates[name]) if self._draft.is_limited else None
        if self.made and (first := self.made[0].plan):
            return self._draft.of_size(self._estimates[name], first.size)
        return self._draft.within(self._estimates[name], self.largest)

    def smaller(self, best: _Made) -> _Made:
        """The smallest file with the calibration set of `best` that holds the largest divergence, in further tries."""
        name, last, change = best.tried.calibration, best, 1.0
        for left in range(TRIES - 1, 0, -1):
            if last.plan is None or CLOSE <= last.worst <= 1:
                break
            aim = AIM if left > 1 or best.worst <= 1 else LAST_AIM
            limit = last.plan.cost * (aim / max(last.worst, LEAST)) ** change
            plan = self._draft.within(self._estimates[name], limit)
            if any(made.plan and made.plan.types == plan.types for made in self.made):
                break
            before, last = last, self._make(name, plan)
            change = _change(before, last)
            best = self._keep(min(best, last, key=lambda made: made.size))
        return best

    def refusal(self, best: _Made) -> GateError:
        """Why none is kept; `best` is the nearest to the limits."""
        allowed = float(f"{1.1 * max(best.tried.mean_kld_nats.values()):.2g}")
        which = "No file that was tried is near enough to the model. The nearest"
        hint = f"Allow more: --max-kld {allowed:g}, in a target quantize.max_kld_nats."
        if self.largest is None:
            which = "The file drifts too far from the model. It"
            hint = f"Ask for a larger file, or for the smallest that is near enough: --max-kld {allowed:g}."
        limits = ", ".join(f"{limit:g} on {kind}" for kind, limit in self._limits.items())
        return GateError(
            f"{which} has {best.tried.bytes:,} bytes and a mean KL divergence of {divergences(best.tried.mean_kld_nats)}; "
            f"the limit is {limits}. No file was written.",
            hint,
        )

    def _make(self, name: str, plan: Plan | None) -> _Made:
        file = self._folder / f"{len(self.made)}.gguf"
        fitted = self._draft.write(file, self._texts[name], self._estimates.get(name, {}), plan)
        measured = self._comparison.with_file(file)
        tried = Try(name, file.stat().st_size, fitted.cost, measured)
        shares = (measured[kind] / limit for kind, limit in self._limits.items() if kind in measured)
        self.made.append(_Made(file, fitted, tried, plan, max(shares, default=0.0)))
        of = f"Try {len(self.made)} of at most {self._most}, calibrated on {name}"
        self._emit(
            Alert(
                "info", f"{of}: {tried.bytes:,} bytes, mean KL divergence {divergences(tried.mean_kld_nats)}."
            )
        )
        return self.made[-1]

    def _keep(self, best: _Made) -> _Made:
        """`best`; the files of all others are removed."""
        for made in self.made:
            if made is not best:
                made.file.unlink(missing_ok=True)
        return best

    def _labelled(self, event: Event) -> None:
        if isinstance(event, Progress) and self._most > 1:
            event = replace(event, note=f"{event.note}, try {len(self.made) + 1}")
        self._emit(event)


def _change(before: _Made, last: _Made) -> float:
    """The power by which the estimate has to change more than the divergence, which may follow it less than it should."""
    if before.plan is None or last.plan is None or before.plan.cost == last.plan.cost:
        return 1.0
    measured = log(max(before.worst, LEAST) / max(last.worst, LEAST))
    followed = measured / log(before.plan.cost / last.plan.cost)
    return 1 / min(1.0, max(LEAST_FOLLOWED, followed))
