"""Robustness: what a model's answers lose under noise, and in frames of the task that it was not tuned with.

Every item is asked as it is, with the noise of each family, and in each held-out phrasing. The performance drop rate is that
of PromptRobust (Zhu et al. 2023, arXiv 2306.04528); the worst case over the variants of an item is HELM's (Liang et al. 2022,
arXiv 2211.09110); the spread over phrasings is FormatSpread's (Sclar et al. 2023, arXiv 2310.11324).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit, Progress
from edgekit.base.texts import one_line
from edgekit.data.noise import FAMILIES, STRENGTH, perturbed
from edgekit.data.phrasings import PHRASINGS
from edgekit.data.rows import Row
from edgekit.evaluation.abstention import of_variants
from edgekit.evaluation.answering import Model, fill, known, sample_of
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.samples import write_log
from edgekit.evaluation.statistics import (
    ONE_SIDED_95,
    drop_rate,
    paired_difference,
    percentile_interval,
    resampled_sums,
    wilson,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA = "edgekit.robustness/1"
STAGE = "eval.robust"
CLEAN = "clean"
WORST_ROWS = 5
LONGEST = 200  # characters of a text in the list of the worst rows


@dataclass(frozen=True)
class Noise:
    """Which noise: the families, the share of words that it touches, and the seed of its draws."""

    families: tuple[str, ...] = tuple(FAMILIES)
    strength: float = STRENGTH
    seed: int = 7

    @classmethod
    def of(cls, families: str, strength: float, seed: int) -> Noise:
        """The noise of families given as `typos,case`, or of all for an empty text. Raises `ConfigError` for unknown ones."""
        names = tuple(dict.fromkeys(name.strip() for name in families.split(",") if name.strip()))
        for name in names:
            if name not in FAMILIES:
                meant = get_close_matches(name, FAMILIES, n=1)
                raise ConfigError(
                    f"There is no family of noise '{name}'."
                    + (f" Did you mean {meant[0]}?" if meant else ""),
                    f"Use some of: {', '.join(FAMILIES)}.",
                )
        return cls(names or tuple(FAMILIES), strength, seed)


@dataclass(frozen=True)
class Asking:
    """The longest answer in tokens, and the answer that says that a request is out of scope, empty where there is none."""

    max_tokens: int = 64
    abstaining: str = ""


@dataclass(frozen=True)
class Variant:
    """The rows asked in one way: as they are (`clean`), with noise, or in another phrasing."""

    name: str
    kind: str
    held_out: bool
    rows: Sequence[Row]


def variants(rows: Sequence[Row], noise: Noise) -> list[Variant]:
    """The rows as they are, with the noise of each family, and in each phrasing that no model is tuned with."""
    noisy = [
        Variant(name, "noise", FAMILIES[name].held_out, perturbed(rows, name, noise.seed, noise.strength))
        for name in noise.families
    ]
    framed = [
        Variant(phrasing.name, "phrasing", True, [phrasing.of(row) for row in rows])
        for phrasing in PHRASINGS
        if phrasing.held_out
    ]
    return [Variant(CLEAN, CLEAN, False, rows), *noisy, *framed]


def evaluate(
    model: Model, rows: Sequence[Row], noise: Noise, asking: Asking, *, log: Path, kept: Kept, emit: Emit
) -> dict[str, Any]:
    """Ask every variant of every row greedily, and compare the answers with those to the rows as they are.

    `log` gets one JSON object for each item and variant, completely or not at all. Answers in `kept` are not asked again, and
    it gets the new ones. Returns the document of schema `edgekit.robustness/1`. Raises `ConfigError` without rows.
    """
    if not rows:
        raise ConfigError("There are no rows to evaluate.", "Add test rows to --data.")
    asked = variants(rows, noise)
    samples = [
        sample_of(model, row, variant=variant.name, kind=variant.kind, held_out=variant.held_out)
        for variant in asked
        for row in variant.rows
    ]
    done = sum(known(sample, kept) for sample in samples)
    emit(Progress(STAGE, done, len(samples), "answers"))
    for start in range(0, len(samples), len(rows)):
        part = samples[start : start + len(rows)]
        conversations = [row.messages[:-1] for row in asked[start // len(rows)].rows]
        for count in fill(model, part, conversations, asking.max_tokens, kept):
            done += count
            right = [sample["correct"] for sample in part if "answer" in sample]
            note = f"{part[0]['variant']}: accuracy {sum(right) / len(right):.1%}"
            emit(Progress(STAGE, done, len(samples), "answers", note))
    write_log(log, samples)
    return {
        "schema": SCHEMA,
        "n": len(rows),
        "strength": noise.strength,
        "seed": noise.seed,
        **summarize(samples, len(rows)),
        "abstention": of_variants(samples, asking.abstaining),
        "worst_rows": worst_rows(samples, [row for variant in asked for row in variant.rows], len(rows)),
    }


def summarize(samples: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    """The figures of the samples of `count` items, those of one variant after the other, the clean one first.

    `families` and `phrasings` hold accuracy, performance drop rate and the share of changed answers, with 95 % intervals;
    `seen` and `held_out` average the families of either kind, `noise` all of them. `pdr_bounds` are one-sided.
    """
    import numpy as np

    parts = [samples[start : start + count] for start in range(0, len(samples), count)]
    right = np.array([[sample["correct"] for sample in part] for part in parts], float)  # (variants, items)
    same = np.array(
        [[s["answer"] == c["answer"] for s, c in zip(part, parts[0], strict=True)] for part in parts]
    )
    about = [part[0] for part in parts]

    def chosen(kind: str, held_out: bool | None = None) -> list[int]:
        return [
            place for place, one in enumerate(about)
            if one["kind"] == kind and held_out in (None, one["held_out"])
        ]  # fmt: skip

    def figures(places: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {
                "name": about[place]["variant"],
                "held_out": about[place]["held_out"],
                **_accuracy(right[place]),
                **_drop(right[0], right[place]),
                "changed": float(1 - same[place].mean()),
                "changed_95": list(wilson(float(count - same[place].sum()), count)),
            }
            for place in places
        ]

    families, phrasings = figures(chosen("noise")), figures(chosen("phrasing"))
    found: dict[str, Any] = {
        "clean": _accuracy(right[0]),
        "families": [{**one, "about": FAMILIES[one["name"]].about} for one in families],
        "noise": _average(right, chosen("noise")),
        "seen": _average(right, chosen("noise", False)),
        "held_out": _average(right, chosen("noise", True)),
        "phrasings": phrasings,
        "template_spread": _spread(right[chosen("phrasing")]),
    }
    ways = {
        "noise": [0, *chosen("noise")],
        "phrasings": [0, *chosen("phrasing")],
        "all": [*range(len(parts))],
    }
    found["worst_case"] = {name: _accuracy(right[places].min(axis=0)) for name, places in ways.items()}
    found["consistency"] = {
        name: _share("share", np.all(same[places], axis=0)) for name, places in ways.items()
    }
    return found


def worst_rows(samples: Sequence[dict[str, Any]], asked: Sequence[Row], count: int) -> list[dict[str, Any]]:
    """The rows that are right as they are and wrong in the most variants, each with its first wrong answer; at most five.

    `samples` and the rows `asked` are those of one variant of `count` items after the other, the clean one first.
    """
    wrong: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        if not sample["correct"] and samples[place % count]["correct"]:
            wrong.setdefault(place % count, []).append(place)
    found = []
    for places in sorted(wrong.values(), key=len, reverse=True)[:WORST_ROWS]:
        first = samples[places[0]]
        said = next(
            (one["content"] for one in reversed(asked[places[0]].messages[:-1]) if one["role"] == "user"), ""
        )
        found.append(
            {
                "id": first["id"],
                "label": first["label"],
                "wrong_in": [samples[place]["variant"] for place in places],
                "of": len(samples) // count - 1,
                "asked": one_line(said, LONGEST),
                "expected": one_line(first["expected"], LONGEST),
                "answer": one_line(first["answer"], LONGEST),
            }
        )
    return found


def _share(name: str, items: NDArray[Any]) -> dict[str, Any]:
    """The share of true `items (N,)` under `name`, with its interval."""
    return {name: float(items.mean()), "wilson_95": list(wilson(float(items.sum()), len(items)))}


def _accuracy(right: NDArray[np.float64]) -> dict[str, Any]:
    return _share("accuracy", right)


def _drop(clean: NDArray[np.float64], noisy: NDArray[np.float64]) -> dict[str, Any]:
    """The performance drop rate and its interval; None where no clean answer is right."""
    rate, interval = drop_rate(clean, noisy)
    return {"pdr": rate, "pdr_95": None if rate is None else list(interval)}


def _average(right: NDArray[np.float64], places: Sequence[int]) -> dict[str, Any] | None:
    """The mean accuracy and drop rate of several families; None without any."""
    if not places:
        return None
    mean = right[places].mean(axis=0)
    rate, bounds = drop_rate(right[0], mean, ONE_SIDED_95)
    return {
        "families": len(places),
        "accuracy": float(mean.mean()),
        **_drop(right[0], mean),
        "pdr_bounds": None if rate is None else list(bounds),
    }


def _spread(right: NDArray[np.float64]) -> dict[str, Any]:
    """The largest minus the smallest accuracy over phrasings, with its paired bootstrap interval.

    Where that has no width, as when all phrasings are answered alike, it is as wide as that of a difference without a change.
    """
    means, count = right.mean(axis=1), right.shape[1]
    spread = float(means.max() - means.min())
    drawn = resampled_sums(right.T) / count
    low, high = percentile_interval(drawn.max(axis=1) - drawn.min(axis=1))
    if low == high:
        width = paired_difference(0, 0, count).high
        low, high = max(0.0, spread - width), min(1.0, spread + width)
    return {"spread": spread, "bootstrap_95": [low, high], "phrasings": len(right)}
