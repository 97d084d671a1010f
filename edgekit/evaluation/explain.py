"""One row through several model files: how likely each file holds each answer, and which words carry the right one.

A word carries an answer by how much the answer's log-likelihood falls when the word is left out (leave one out; Li et al. 2016,
Understanding Neural Networks through Representation Erasure, arXiv 1612.08220).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
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
        "The log of any `edgekit eval` has the ids of its rows.",
    )


def explain(
    row: Row, files: Sequence[Path], open_file: Open, *, max_tokens: int, emit: Emit
) -> dict[str, Any]:
    """The document of schema `edgekit.explanation/1` of `row` in each of `files`, which are opened one after the other.

    Of each file: its greedy `answer`, the log-likelihood of this answer, of the row's, and of those of the other files, and by how
    many nats that of the row's answer falls without each word of the last question.
    """
    expected = row.answer.strip()
    found: list[dict[str, Any]] = []
    for file in files:
        with open_file(file) as runtime:
            answer, cut = _answer(runtime, row, max_tokens)
            known = dict.fromkeys([expected, answer, *(one["answer"] for one in found)])
            found.append(
                {
                    "artifact": str(file),
                    "runtime": runtime.name,
                    "answer": answer,
                    "cut": cut,
                    "correct": answer == expected,
                    "answers": _likely(runtime, row, list(known)),
                    "words": _falls(runtime, row, emit, file.name),
                }
            )
    every = list(dict.fromkeys([expected, *(one["answer"] for one in found)]))
    for file, told in zip(files, found, strict=True):
        missing = [answer for answer in every if answer not in told["answers"]]
        if missing:
            with open_file(file) as runtime:
                told["answers"] |= _likely(runtime, row, missing)
        told["answers"] = [{"text": answer, **told["answers"][answer]} for answer in every]
    return {
        "schema": SCHEMA,
        "id": row.id,
        "label": row.label,
        "question": last_question(row),
        "expected": expected,
        "files": found,
    }


def _answer(runtime: Runtime, row: Row, max_tokens: int) -> tuple[str, bool]:
    """The greedy answer, and whether it was cut after `max_tokens`."""
    ids = runtime.generate_batch([encode_prompt(runtime, row.messages[:-1])], max_tokens)[0]
    return runtime.decode(ids).strip(), len(ids) >= max_tokens


def _likely(runtime: Runtime, row: Row, answers: Sequence[str]) -> dict[str, dict[str, float]]:
    """The log-likelihood of each answer, its end included, in nats, in nats for each token, and as a probability."""
    ids = [continued(runtime, answer) for answer in answers]
    nats = likelihoods(runtime, encode_prompt(runtime, row.messages[:-1]), ids)
    return {
        answer: {"nats": one, "nats_per_token": one / (len(tokens) + 1), "probability": math.exp(one)}
        for answer, one, tokens in zip(answers, nats, ids, strict=True)
    }


def _falls(runtime: Runtime, row: Row, emit: Emit, name: str) -> list[dict[str, Any]]:
    """By how many nats the log-likelihood of the row's answer falls without each word of the last question, at most 200 words."""
    answer = [continued(runtime, row.answer.strip())]
    parts = _WORDS.split(last_question(row))  # the words are at the odd places
    places = range(1, len(parts), 2)[:MOST_WORDS]

    def nats(changed: Sequence[str]) -> float:
        other = asked(row, lambda _: "".join(changed))
        return likelihoods(runtime, encode_prompt(runtime, other.messages[:-1]), answer)[0]

    whole, found = nats(parts), []
    for done, at in enumerate(places, start=1):
        found.append({"word": parts[at], "fall_nats": whole - nats([*parts[:at], *parts[at + 1 :]])})
        emit(Progress(STAGE, done, len(places), "words", name))
    return found


def carrying(files: Sequence[Mapping[str, Any]], most: int) -> list[int]:
    """The places of the words without which the row's answer falls or rises most in any file, in the order of the question."""
    count = len(files[0]["words"])
    weight = [max(abs(file["words"][at]["fall_nats"]) for file in files) for at in range(count)]
    return sorted(sorted(range(count), key=lambda at: -weight[at])[:most])
