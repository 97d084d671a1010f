"""Requests out of scope: whether a model's scores tell them from the requests that its task covers.

Every score is higher for requests within the scope:

    max_probability   the probability of the likeliest label (Hendrycks and Gimpel 2017, arXiv 1610.02136)
    max_score         the length-normalised likelihood of the likeliest label, or of the model's own free answer
    energy            the log of the probability that the answer is any of the labels (Liu et al. 2020, arXiv 2010.03759)
    abstention        `max_score` against the score of the answer that says "out of scope", for a model tuned to give it
    mahalanobis, knn  the distance to the hidden states of the training rows: `edgekit.evaluation.hidden_states`

The energy sums likelihoods that are not divided by the lengths of the labels. Divided, those of all labels are near one another,
and their sum says how many labels there are rather than how likely any of them is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit, Progress
from edgekit.base.texts import one_line
from edgekit.data.noise import last_question
from edgekit.data.out_of_scope import is_out_of_scope
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.device.likelihood import choice_scores
from edgekit.device.prompt import continued, encode_prompt
from edgekit.evaluation.answering import fill, sample_of
from edgekit.evaluation.calibration import fit_temperature
from edgekit.evaluation.choices import candidates, scores_of
from edgekit.evaluation.detection import at_thresholds, figures, pair
from edgekit.evaluation.hidden_states import TrainingStates, states_of
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.samples import write_log
from edgekit.evaluation.statistics import wilson
from edgekit.models.likelihood import probabilities
from edgekit.registry import Runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA = "edgekit.ood/1"
STAGE = "eval.ood"
FREE = "The answers are free texts, not labels."


@dataclass(frozen=True)
class Requests:
    """The rows that are asked. `train`, `validation` and `inside` are within the scope, `outside` are not.

    `labels` are the answers among which the model chooses; none where answers are free. `left_out` rows of the split have an
    answer that is none of the labels. `abstaining` is the answer that says that a request is out of scope, if there is one.
    """

    train: Sequence[Row]
    validation: Sequence[Row]
    inside: Sequence[Row]
    outside: Sequence[Row]
    labels: Sequence[str]
    abstaining: str
    left_out: int = 0

    @classmethod
    def of(
        cls, data: Dataset, split: str, given: Sequence[Row], abstaining: str, *, limit: int = 0
    ) -> Requests:
        """The rows of `split` within the scope, beside those that its labels call out of scope and those that are `given`.

        `limit` is the largest number of rows of each kind; 0 uses all. Raises `ConfigError` when one kind has no rows, and when
        a row within the scope is `given` as well.
        """

        def within(rows: Sequence[Row]) -> list[Row]:
            return [row for row in rows if not is_out_of_scope(row, abstaining)]

        measured: Sequence[Row] = getattr(data, split)
        train, validation, inside = within(data.train), within(data.validation), within(measured)
        outside = [*given, *(row for row in measured if is_out_of_scope(row, abstaining))]
        try:
            labels = candidates(train)
        except ConfigError:
            labels = []
        texts = {last_question(row) for row in (*validation, *inside)}
        if both := [last_question(row) for row in given if last_question(row) in texts]:
            raise ConfigError(
                f"{len(both)} of {len(given)} requests out of scope are rows within it too, such as '{one_line(both[0], 60)}'.",
                "Remove them from --out-of-scope, or label those rows out_of_scope.",
            )
        known = set(labels)
        asked = [
            [row for row in rows if not known or row.answer.strip() in known] for rows in (validation, inside)
        ]
        left_out = len(inside) - len(asked[1])
        validation, inside = (rows[: limit or None] for rows in asked)
        if not outside:
            raise ConfigError(
                "There are no requests that are out of scope.",
                "Give some with --out-of-scope FILE, one on each line, or add rows labelled out_of_scope.",
            )
        for rows, what in ((validation, "validation"), (inside, split)):
            if not rows:
                raise ConfigError(
                    f"The {what} rows have no request within the scope of the training rows.",
                    "Use splits with the same labels.",
                )
        return cls(train, validation, inside, outside[: limit or None], labels, abstaining.strip(), left_out)

    @property
    def asked(self) -> dict[str, Sequence[Row]]:
        """The rows that are scored, by their kind."""
        return {"validation": self.validation, "inside": self.inside, "outside": self.outside}


@dataclass
class Answers:
    """The answers to N rows of one kind, and their scores `(N,)` by name."""

    texts: list[str]
    scores: dict[str, NDArray[np.float64]]


def evaluate(
    runtime: Runtime,
    requests: Requests,
    *,
    fit_rows: int,
    max_tokens: int,
    log: Path,
    kept: Kept | None,
    emit: Emit,
) -> dict[str, Any]:
    """Score the requests, and measure each score; the temperature and the thresholds are those of the validation rows.

    The hidden states of at most `fit_rows` training rows are read; with 0, and where the runtime shows none, `mahalanobis` and
    `knn` are left out. `log` gets one JSON object for each request, completely or not at all. What is in `kept`, of the same
    labels and abstaining answer, is not computed again, and it gets what is new. Returns the document of schema `edgekit.ood/1`.
    """
    if requests.labels:
        answers, temperature = _choose(runtime, requests, kept, emit)
    else:
        answers, temperature = _answer(runtime, requests, max_tokens, kept, emit), None
    rows = spread(requests.train, fit_rows)
    states = _add_distances(runtime, requests, answers, rows, kept, emit)
    validation, inside, outside = (answers[kind] for kind in requests.asked)
    expected = [row.answer.strip() for row in requests.inside]
    right = np.array([one == other for one, other in zip(inside.texts, expected, strict=True)])
    abstained = np.array([text == requests.abstaining for text in outside.texts])
    _write(log, requests, answers)
    return {
        "schema": SCHEMA,
        "n": len(right),
        "n_out_of_scope": len(abstained),
        "left_out": requests.left_out,
        "validation_rows": len(requests.validation),
        "labels": len(requests.labels) or None,
        "temperature": temperature,
        "abstaining_answer": requests.abstaining or None,
        "accuracy": float(right.mean()),
        "wilson_95": list(wilson(int(right.sum()), len(right))),
        "as_answered": pair(right, abstained) if requests.abstaining else None,
        "scores": [
            {
                "name": name,
                **figures(values, outside.scores[name]),
                "thresholds": at_thresholds(validation.scores[name], values, outside.scores[name], right),
            }
            for name, values in inside.scores.items()
        ],
        "hidden_states": states,
        "not_measured": _not_measured(runtime, requests, fit_rows, states),
    }


def _choose(
    runtime: Runtime, requests: Requests, kept: Kept | None, emit: Emit
) -> tuple[dict[str, Answers], float]:
    """Answers chosen among the labels and the abstaining answer, their scores, and the temperature."""
    labels = requests.labels
    choices = [*labels, requests.abstaining] if requests.abstaining else list(labels)
    scored = {
        kind: scores_of(runtime, rows, choices, emit, f"{STAGE}.{kind}", kept=kept)
        for kind, rows in requests.asked.items()
    }
    tokens = np.array([len(continued(runtime, label)) + 1 for label in labels])
    right = np.array([labels.index(row.answer.strip()) for row in requests.validation], np.int64)
    temperature = fit_temperature(scored["validation"][:, : len(labels)], right)
    found = {}
    for kind, table in scored.items():
        known = table[:, : len(labels)]
        scores = {
            "max_probability": probabilities(known, temperature).max(axis=1),
            "max_score": known.max(axis=1),
            "energy": np.logaddexp.reduce(known * tokens, axis=1),
        }
        if requests.abstaining:
            scores["abstention"] = scores["max_score"] - table[:, -1]
        found[kind] = Answers([choices[place] for place in table.argmax(axis=1)], scores)
    return found, temperature


def _answer(
    runtime: Runtime, requests: Requests, max_tokens: int, kept: Kept | None, emit: Emit
) -> dict[str, Answers]:
    """The model's own answers, and the likelihood of each, alone and against the abstaining answer."""
    found = {}
    for kind, rows in requests.asked.items():
        conversations = [row.messages[:-1] for row in rows]
        samples = [sample_of(runtime, row) for row in rows]
        if kind == "outside" and requests.abstaining:
            samples = [
                one | {"expected": requests.abstaining} for one in samples
            ]  # says where an answer is cut
        for _ in fill(runtime, samples, conversations, max_tokens, kept):
            pass
        texts = [one["answer"] for one in samples]
        scores = np.empty((len(rows), 2 if requests.abstaining else 1))
        for index, (messages, sample) in enumerate(zip(conversations, samples, strict=True)):
            key = {name: sample[name] for name in ("prompt", "expected")}
            known = kept.value(**key, name="scores") if kept is not None else None
            if known is not None:
                scores[index] = known
            else:
                said = [sample["answer"], requests.abstaining][: scores.shape[1]]
                answers = [continued(runtime, one) for one in said]
                scores[index] = choice_scores(runtime, encode_prompt(runtime, messages), answers)
                if kept is not None:
                    kept.add([key | {"scores": scores[index].tolist()}])
            emit(Progress(f"{STAGE}.{kind}", index + 1, len(rows), "rows"))
        named = {"max_score": scores[:, 0]}
        if requests.abstaining:
            named["abstention"] = scores[:, 0] - scores[:, 1]
        found[kind] = Answers(texts, named)
    return found


def _add_distances(
    runtime: Runtime,
    requests: Requests,
    answers: Mapping[str, Answers],
    rows: Sequence[Row],
    kept: Kept | None,
    emit: Emit,
) -> dict[str, int] | None:
    """Add the scores by the hidden states of the training `rows`; returns how many these are, and their labels and width."""
    states = states_of(runtime, rows, emit, f"{STAGE}.train", kept) if rows else None
    if states is None:
        return None
    trained = TrainingStates.of(states, [_label(row) for row in rows])
    for kind, asked in requests.asked.items():
        found = states_of(runtime, asked, emit, f"{STAGE}.states.{kind}", kept)
        assert found is not None  # the runtime showed those of the training rows
        answers[kind].scores["mahalanobis"] = trained.mahalanobis(found)
        answers[kind].scores["knn"] = trained.nearest(found)
    return {"rows": len(rows), "labels": len(trained.means), "width": states.shape[1]}


def _label(row: Row) -> str:
    return row.label or row.answer.strip()


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, as equally many of each label as there are."""
    by_label: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_label[_label(row)].append(row)
    turns = chain.from_iterable(zip_longest(*by_label.values()))
    return [row for row in turns if row is not None][:count]


def _not_measured(
    runtime: Runtime, requests: Requests, fit_rows: int, states: Mapping[str, int] | None
) -> dict[str, str]:
    """Why scores are left out, by their names."""
    found = {} if requests.labels else dict.fromkeys(("max_probability", "energy"), FREE)
    if not requests.abstaining:
        found["abstention"] = "No answer says that a request is out of scope."
    if states is None:
        why = f"{runtime.name} shows no hidden states." if fit_rows else "No training rows were read."
        found |= dict.fromkeys(("mahalanobis", "knn"), why)
    return found


def _write(log: Path, requests: Requests, answers: Mapping[str, Answers]) -> None:
    """The sample of each request; one out of scope is answered correctly if its answer says so."""
    samples = []
    for kind, scope in (("inside", "in"), ("outside", "out")):
        for index, (row, text) in enumerate(zip(requests.asked[kind], answers[kind].texts, strict=True)):
            expected = row.answer.strip() if scope == "in" else requests.abstaining
            samples.append(
                {
                    "id": row.id,
                    "scope": scope,
                    "label": row.label,
                    "request": row.messages[-2]["content"],
                    "expected": expected,
                    "answer": text,
                    "correct": bool(expected) and text == expected,
                    "scores": {
                        name: round(float(values[index]), 6) for name, values in answers[kind].scores.items()
                    },
                }
            )
    write_log(log, samples)
