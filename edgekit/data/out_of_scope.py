"""Requests that a task does not cover, with the answer that says so.

The requests come with edgekit and are of many kinds. Those that resemble a training row are left out, because they may be
in the scope of the task.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import product
from random import Random

from edgekit.data.rows import Message, Row

ANSWER = "out_of_scope"
LONGEST_LABEL = 60  # characters of an answer that may be one of a closed set
ROWS_PER_ANSWER = 4  # at the least, on average, in a closed set
ALIKE = 0.6  # share of a request's words that one training row may hold
_NAMED = re.compile(
    r"out.?of.?(scope|domain)|^oo[sd]$|^(unknown|fallback|none|no.?intent|unsupported)$", re.IGNORECASE
)
_CHOICE = re.compile(r"\(([^()]*)\)")
_WORD = re.compile(r"[a-z]{4,}")


@cache
def requests() -> tuple[str, ...]:
    """Every request that the patterns of `out_of_scope.toml` give."""
    text = resources.files("edgekit.data").joinpath("out_of_scope.toml").read_text("utf-8")
    return tuple(text for pattern in tomllib.loads(text)["patterns"] for text in _expanded(pattern))


def _expanded(pattern: str) -> list[str]:
    parts = _CHOICE.split(pattern)
    choices = [part.split("|") if place % 2 else [part] for place, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def is_out_of_scope(row: Row, abstaining: str = "") -> bool:
    """Whether the label of a row, or its answer where it has no label, says that it is out of scope, or `abstaining` is its answer."""
    said_so = bool(abstaining) and row.answer.strip() == abstaining.strip()
    return said_so or names_out_of_scope(row.label or row.answer)


def names_out_of_scope(text: str) -> bool:
    """Whether a label, or an answer, says that a request is out of scope."""
    return bool(_NAMED.search(text))


def answer_of(rows: Sequence[Row], chosen: str = "auto") -> str:
    """The answer to a request out of scope; an empty text when the rows do not tell and `chosen` is `auto`.

    It is the answer of rows labelled as out of scope. Else, where answers are a closed set of labels, it is `out_of_scope`, in
    the form of the answers when each holds its row's label.
    """
    if chosen != "auto":
        return chosen
    named = {row.answer for row in rows if is_out_of_scope(row)}
    if len(named) == 1:
        return named.pop()
    answers = Counter(row.answer for row in rows)
    closed = (
        len(answers) * ROWS_PER_ANSWER <= len(rows) and max(map(len, answers), default=0) <= LONGEST_LABEL
    )
    if named or not closed:
        return ""
    forms = {row.answer.replace(row.label, ANSWER) if row.label else row.answer for row in rows}
    return forms.pop() if len(forms) == 1 else ANSWER


def rows_out_of_scope(
    rows: Sequence[Row], texts: Sequence[str], answer: str, count: int, seed: str
) -> list[Row]:
    """At most `count` of the requests `texts`, each with `answer` and the frame of one of `rows`."""
    random = Random(seed)
    chosen = random.sample(texts, min(count, len(texts)))
    found = []
    for place, text in enumerate(chosen):
        frame = rows[random.randrange(len(rows))].messages[0]
        start: tuple[Message, ...] = (frame,) if frame["role"] == "system" else ()
        messages = (*start, {"role": "user", "content": text}, {"role": "assistant", "content": answer})
        found.append(Row(f"out-of-scope-{seed}-{place}", messages, ANSWER))
    return found


def unlike(rows: Sequence[Row]) -> list[str]:
    """Requests that no training row resembles: none holds a large share of their words."""
    holders: dict[str, set[int]] = defaultdict(set)
    for place, row in enumerate(rows):
        for message in row.messages[:-1]:
            if message["role"] == "user":
                for word in _WORD.findall(message["content"].lower()):
                    holders[word].add(place)
    found = []
    for text in requests():
        words = set(_WORD.findall(text.lower()))
        shared = Counter(place for word in words for place in holders.get(word, ()))
        if max(shared.values(), default=0) < ALIKE * len(words) or not words:
            found.append(text)
    return found
