"""A search for slips that make a model answer wrongly: how often it succeeds, and after how many queries.

Greedy and black-box, as DeepWordBug (Gao et al. 2018, arXiv 1801.04354) and TextBugger (Li et al. 2018, arXiv 1812.05271): words
are ranked by how much the likelihood of the right answer falls without them; in this order each gets the slip that lowers it
most, until the answer changes, or the budget is spent.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from edgekit.base.events import Emit, Progress
from edgekit.data.bugs import SHORTEST, bugs, pieces, vocabulary
from edgekit.data.noise import asked, last_question, words_of_answer
from edgekit.data.rows import Row, contents_of
from edgekit.device.likelihood import likelihoods
from edgekit.device.prompt import continued, encode_prompt
from edgekit.evaluation.accuracy import answer_rows
from edgekit.evaluation.answering import fill
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.samples import write_log
from edgekit.evaluation.statistics import wilson
from edgekit.registry import Runtime

SCHEMA = "edgekit.adversarial/1"
STAGE = "eval.adversarial"
EXAMPLES = 5
CERTAIN = 0.5
"""Above this probability each token of the right answer is the most likely one, so the greedy answer is right."""


@dataclass(frozen=True)
class Search:
    """The bounds of the search: queries for each row, the share of its words that may change, and the seed of the slips."""

    queries: int = 60
    share: float = 0.3
    seed: int = 7


def evaluate(
    runtime: Runtime,
    rows: Sequence[Row],
    search: Search,
    *,
    max_tokens: int,
    log: Path,
    kept: Kept,
    emit: Emit,
) -> dict[str, Any]:
    """Search for slips in each row that is answered rightly. Returns the document of schema `edgekit.adversarial/1`.

    `log` gets one JSON object for each row, completely or not at all; rows that are wrong as they are keep that answer. Rows in
    `kept` are not searched again, and it gets the new ones. Raises `ConfigError` without rows.
    """
    clean = answer_rows(runtime, rows, max_tokens=max_tokens, emit=emit, stage=STAGE)
    words = vocabulary(contents_of(row.messages for row in rows))
    samples = []
    for row, sample in zip(rows, clean, strict=True):
        found = kept.sample(sample["prompt"], sample["expected"])
        if found is None:
            found = sample | {"variant": "adversarial", "right_before": sample["correct"], "queries": 0}
            found |= {"edits": [], "attacked": last_question(row)}
            if sample["correct"]:
                found |= _Attack(runtime, row, search, max_tokens).run(words)
            kept.add([found])
        samples.append(found)
        tried = [one for one in samples if one["right_before"]]
        note = f"{sum(not one['correct'] for one in tried)} of {len(tried)} right answers changed"
        emit(Progress(STAGE, len(samples), len(rows), "rows", note))
    write_log(log, samples)
    return {
        "schema": SCHEMA,
        "queries": search.queries,
        "share": search.share,
        "seed": search.seed,
        **figures(samples),
    }


def figures(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The success rate over the samples that were right before, the accuracy before and after, and the mean queries.

    `success` and the means are None where nothing was searched, or nothing found.
    """
    tried = [sample for sample in samples if sample["right_before"]]
    fooled = [sample for sample in tried if not sample["correct"]]
    return {
        "n": len(samples),
        "clean": _share(len(tried), len(samples)),
        "attacked": _share(len(tried) - len(fooled), len(samples)),
        "searched": len(tried),
        "succeeded": len(fooled),
        "success": len(fooled) / len(tried) if tried else None,
        "success_95": list(wilson(len(fooled), len(tried))),
        "mean_queries": _mean([sample["queries"] for sample in tried]),
        "mean_queries_of_successes": _mean([sample["queries"] for sample in fooled]),
        "mean_words_of_successes": _mean([len(sample["edits"]) for sample in fooled]),
        "examples": [
            {key: sample[key] for key in ("id", "attacked", "expected", "answer")}
            for sample in fooled[:EXAMPLES]
        ],
    }


class _Attack:
    """The search on one row; every text that the model is asked counts as a query."""

    def __init__(self, runtime: Runtime, row: Row, search: Search, max_tokens: int) -> None:
        self._runtime, self._row, self._search, self._max_tokens = runtime, row, search, max_tokens
        self._answer = continued(runtime, row.answer.strip())
        self._random = Random(f"{search.seed}:{row.id}")
        self._queries = 0

    def run(self, words: Collection[str]) -> dict[str, Any]:
        """What was found: the `attacked` question, its `edits`, the `answer`, whether it is still `correct`, and the `queries`."""
        parts = pieces(last_question(self._row))
        keep = words_of_answer(self._row)
        places = [
            at
            for at in range(1, len(parts), 2)
            if len(parts[at]) >= SHORTEST and parts[at].lower() not in keep
        ]
        most = max(1, round(self._search.share * (len(parts) // 2)))
        expected = answer = self._row.answer.strip()
        edits: list[tuple[str, str]] = []
        likely = self._likelihood(parts)
        for at in self._ranked(parts, places, likely):
            lower = self._worst_slip(parts, at, words, likely)
            if lower is None:
                continue
            likely, slip = lower
            edits.append((parts[at], slip))
            parts[at] = slip
            if math.exp(likely) <= CERTAIN and self._left > 0:
                answer = self._ask(parts)
            if answer != expected or len(edits) == most or self._left <= 1:
                break
        return {
            "attacked": "".join(parts),
            "edits": edits,
            "answer": answer,
            "correct": answer == expected,
            "queries": self._queries,
        }

    @property
    def _left(self) -> int:
        return self._search.queries - self._queries

    def _ranked(self, parts: Sequence[str], places: Sequence[int], likely: float) -> list[int]:
        """The places of words, first those without which the right answer is least likely; with at most half the budget."""
        drawn = self._random.sample(places, min(len(places), self._search.queries // 2))
        falls = {at: likely - self._likelihood([*parts[:at], "", *parts[at + 1 :]]) for at in drawn}
        return sorted(falls, key=lambda at: (-falls[at], at))

    def _worst_slip(
        self, parts: Sequence[str], at: int, words: Collection[str], likely: float
    ) -> tuple[float, str] | None:
        """The slip of a word with which the right answer is least likely; None if none lowers its likelihood."""
        tried = [
            (self._likelihood([*parts[:at], slip, *parts[at + 1 :]]), slip)
            for slip in bugs(parts[at], self._random, words)
            if self._left > 1  # one is for the answer
        ]
        best = min(tried, default=None)
        return best if best and best[0] < likely else None

    def _row_with(self, parts: Sequence[str]) -> Row:
        return asked(self._row, lambda _: "".join(parts))

    def _likelihood(self, parts: Sequence[str]) -> float:
        self._queries += 1
        prompt = encode_prompt(self._runtime, self._row_with(parts).messages[:-1])
        return likelihoods(self._runtime, prompt, [self._answer])[0]

    def _ask(self, parts: Sequence[str]) -> str:
        self._queries += 1
        sample = {"prompt": "", "expected": self._row.answer.strip()}
        for _ in fill(self._runtime, [sample], [self._row_with(parts).messages[:-1]], self._max_tokens):
            pass
        return sample["answer"]


def _share(hits: int, n: int) -> dict[str, Any]:
    return {"accuracy": hits / n, "wilson_95": list(wilson(hits, n))}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
