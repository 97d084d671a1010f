"""One row through several model files: how likely each file holds each answer, and which words carry the right one.

A word carries an answer by how much the answer's log-likelihood falls when the word is left out (leave one out; Li et al. 2016,
Understanding Neural Networks through Representation Erasure, arXiv 1612.08220).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.events import Emit, Progress
from edgekit.data.noise import asked, last_question
from edgekit.data.rows import Row
from edgekit.data.splits import SPLITS, Dataset
from edgekit.device.likelihood import likelihoods
from edgekit.device.prompt import continued, encode_prompt
from edgekit.evaluation.kept import Kept
from edgekit.registry import Runtime

SCHEMA = "edgekit.explanation/1"
STAGE = "eval.explain"
MOST_WORDS = 200
_WORDS = re.compile(r"(\w+)")
Open = Callable[[Path], AbstractContextManager[Runtime]]


def find(dataset: Dataset, id_: str, split: str) -> Row:
    """The row with an id, of `split` or else of another one. Raises `ConfigError` when there is none."""
    for name in (split, *SPLITS):
        for row in getattr(dataset, name):
            if row.id == id_:
                found: Row = row
                return found
    known = [row.id for row in dataset.all_rows]
    near = get_close_matches(id_, known, 1)
    raise ConfigError(
        f"There is no row with the id '{id_}' in {dataset.name}."
        + (f" Did you mean '{near[0]}'?" if near else ""),
        f"The ids are those in the data or in the log of any `edgekit eval`, such as {known[0]}.",
    )


@dataclass(frozen=True)
class _File:
    """An opened file that is asked for a row; what is in `kept` is not computed again, and it gets what is new."""

    runtime: Runtime
    row: Row
    kept: Kept

    def answer(self, max_tokens: int) -> tuple[str, bool]:
        """The greedy answer, and whether it was cut after `max_tokens`."""
        question = last_question(self.row)
        if (known := self.kept.sample(question, None)) is None:
            ids = self.runtime.generate_batch([self._prompt(question)], max_tokens)[0]
            known = {"answer": self.runtime.decode(ids).strip(), "cut": len(ids) >= max_tokens}
            self.kept.add([{"prompt": question, "expected": None, **known}])
        return known["answer"], known["cut"]

    def nats(self, question: str, answers: Sequence[str]) -> list[float]:
        """The log-likelihood of each answer, its end included, where the last question is another."""
        known = {answer: self.kept.sample(question, answer) for answer in answers}
        if missing := [answer for answer, one in known.items() if one is None]:
            ids = [continued(self.runtime, answer) for answer in missing]
            found = likelihoods(self.runtime, self._prompt(question), ids)
            new = [
                {"prompt": question, "expected": answer, "answer": answer, "nats": nats}
                for answer, nats in zip(missing, found, strict=True)
            ]
            self.kept.add(new)
            known |= dict(zip(missing, new, strict=True))
        return [one["nats"] for one in known.values() if one]

    def _prompt(self, question: str) -> list[int]:
        return encode_prompt(self.runtime, asked(self.row, lambda _: question).messages[:-1])


def explain(
    row: Row,
    files: Sequence[Path],
    open_file: Open,
    keep: Callable[[Path], Kept],
    *,
    max_tokens: int,
    emit: Emit,
) -> dict[str, Any]:
    """The document of schema `edgekit.explanation/1` of `row` in each of `files`, which are opened one after the other.

    Of each file: its greedy `answer`, the log-likelihood of this answer, of the row's, and of those of the other files, and by how
    many nats that of the row's answer falls without each word of the last question. `keep` gives what an interrupted run has
    computed of a file; it is asked once for each file, in their order, and removed at the end.
    """
    expected = row.answer.strip()
    found: list[dict[str, Any]] = []
    every_kept: list[Kept] = []
    for file in files:
        with open_file(file) as runtime:
            every_kept.append(keep(file))
            opened = _File(runtime, row, every_kept[-1])
            answer, cut = opened.answer(max_tokens)
            known = dict.fromkeys([expected, answer, *(one["answer"] for one in found)])
            found.append(
                {
                    "artifact": str(file),
                    "runtime": runtime.name,
                    "answer": answer,
                    "cut": cut,
                    "correct": answer == expected,
                    "answers": _likely(opened, list(known)),
                    "words": _falls(opened, emit, file.name),
                }
            )
    every = list(dict.fromkeys([expected, *(one["answer"] for one in found)]))
    for file, told, kept in zip(files, found, every_kept, strict=True):
        missing = [answer for answer in every if answer not in told["answers"]]
        if missing:
            with open_file(file) as runtime:
                told["answers"] |= _likely(_File(runtime, row, kept), missing)
        told["answers"] = [{"text": answer, **told["answers"][answer]} for answer in every]
    for kept in every_kept:
        kept.remove()
    return {
        "schema": SCHEMA,
        "id": row.id,
        "label": row.label,
        "question": last_question(row),
        "expected": expected,
        "files": found,
    }


def _likely(file: _File, answers: Sequence[str]) -> dict[str, dict[str, float]]:
    """The log-likelihood of each answer, its end included, in nats, in nats for each token, and as a probability."""
    nats = file.nats(last_question(file.row), answers)
    tokens = [len(continued(file.runtime, answer)) + 1 for answer in answers]
    return {
        answer: {"nats": one, "nats_per_token": one / count, "probability": math.exp(one)}
        for answer, one, count in zip(answers, nats, tokens, strict=True)
    }


def _falls(file: _File, emit: Emit, name: str) -> list[dict[str, Any]]:
    """By how many nats the log-likelihood of the row's answer falls without each word of the last question, at most 200 words."""
    answer = [file.row.answer.strip()]
    parts = _WORDS.split(last_question(file.row))  # the words are at the odd places
    places = range(1, len(parts), 2)[:MOST_WORDS]
    (whole,), found = file.nats("".join(parts), answer), []
    for done, at in enumerate(places, start=1):
        (without,) = file.nats("".join([*parts[:at], *parts[at + 1 :]]), answer)
        found.append({"word": parts[at], "fall_nats": whole - without})
        emit(Progress(STAGE, done, len(places), "words", name))
    return found


def carrying(files: Sequence[Mapping[str, Any]], most: int) -> list[int]:
    """The places of the words without which the row's answer falls or rises most in any file, in the order of the question."""
    count = len(files[0]["words"])
    weight = [max(abs(file["words"][at]["fall_nats"]) for file in files) for at in range(count)]
    return sorted(sorted(range(count), key=lambda at: -weight[at])[:most])
