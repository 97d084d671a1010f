"""Held-out text: the reference's answers, and the positions of the model's own tokens.

Two kinds of text are compared: prompts with the reference's own greedy answers, and plain text, which shows what a file
quantized for a narrow use lost elsewhere. `build` and `verify` capture both in the same way, with `capture_own`. A model
without a chat template cannot be asked: its answers are its own continuations of plain text (`capture_continued`).

    <|im_start|>user⏎Is it on?<|im_end|>⏎<|im_start|>assistant ⏎Yes.
    └──────────────── prompt ──────────────────────────────────┘└──┴─ positions of the answer: at the last one the
                                                                      reference chooses its stop token

Nothing after the stop token is compared, because no model is used past it.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import CorruptError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.data.calibration_text import TextTokenizer
from edgekit.data.rows import Message
from edgekit.models.chat import ChatTemplate
from edgekit.proof.drift import Reference, Scored, capture
from edgekit.proof.texts import TEXTS
from edgekit.registry import Runtime

STORE, PLACES = "reference.npz", "places.npz"
CONVERSATION, TEXT, CONTINUATION = 0, 1, 2
TEXT_TOKENS = 256
STAGE = "reference"
AT_ONCE = 24  # answers computed together
CONTINUED_TOKENS = 48  # of plain text before each continuation


class Tokenizer(TextTokenizer, Protocol):
    """The text path of a reference with a chat template."""

    @property
    def chat_template(self) -> ChatTemplate:
        """The reference's chat template."""


@dataclass(frozen=True)
class Passage:
    """Token ids without the stop token, and the position whose next token is the first of the answer.

    The next token of the last position is the one that ends the answer. In plain text `answer` is `len(ids)`.
    """

    ids: list[int]
    answer: int
    kind: int = CONVERSATION


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The reference's distributions on S passages; `answer` and `kind` `(S,)` are their answers' starts and kinds."""

    reference: Reference
    answer: NDArray[np.int64]
    kind: NDArray[np.int64]

    @property
    def passages(self) -> list[Passage]:
        """The passages, for another model to answer."""
        return [
            Passage(ids, int(answer), int(kind))
            for ids, answer, kind in zip(self.reference.sequences, self.answer, self.kind, strict=True)
        ]

    def conversations(self, scored: Scored) -> NDArray[np.bool_]:
        """Which positions `(N,)` are in conversations."""
        return np.asarray(self.kind[scored.sequence] == CONVERSATION)

    def text(self, scored: Scored) -> NDArray[np.bool_]:
        """Which positions `(N,)` are in plain text."""
        return np.asarray(self.kind[scored.sequence] == TEXT)

    def main(self, scored: Scored) -> NDArray[np.bool_]:
        """The positions `(N,)` that drift is reported for: those in conversations, or all if there is only plain text."""
        chosen = self.conversations(scored)
        return chosen if chosen.any() else np.ones_like(chosen)

    def answers(self, scored: Scored) -> NDArray[np.bool_]:
        """At which positions `(N,)` the model chooses a token of an answer, its stop token included."""
        return np.asarray(scored.position >= self.answer[scored.sequence])

    def save(self, folder: Path) -> None:
        """Write the store to an existing folder."""
        self.reference.save(folder / STORE)
        with written_whole(folder / PLACES, force=True) as staging, staging.open("wb") as file:
            np.savez(file, answer=self.answer, kind=self.kind)

    @classmethod
    def load(cls, folder: Path) -> HeldOut:
        """Read the output of `save`; raises `CorruptError` for anything else."""
        reference = Reference.load(folder / STORE)
        try:
            with np.load(folder / PLACES, allow_pickle=False) as arrays:
                held_out = cls(reference, arrays["answer"], arrays["kind"])
            if not len(held_out.answer) == len(held_out.kind) == len(reference.lengths):
                raise ValueError("its arrays do not fit together")
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise CorruptError(
                f"{folder / PLACES} is incomplete: {error}", "Delete it and run the same command again."
            ) from error
        return held_out


def answered(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[Message]],
    max_tokens: int,
    emit: Emit = ignore,
) -> list[Passage]:
    """Prompts with the reference's own greedy answers of up to `max_tokens` tokens, each up to its stop token."""
    ids = [
        tokenizer.encode(tokenizer.chat_template.render(prompt, add_generation_prompt=True))
        for prompt in prompts
    ]
    return _generated(runtime, ids, max_tokens, CONVERSATION, emit)


def continued(
    runtime: Runtime,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    count: int,
    max_tokens: int,
    emit: Emit = ignore,
) -> list[Passage]:
    """The reference's own greedy continuations of `count` pieces of the `texts`, spread over all of them."""
    begin = tokenizer.begin_ids
    encoded = [tokenizer.encode(text)[:TEXT_TOKENS] for text in texts]
    pieces = []
    for number in range(count):
        ids, turn = encoded[number % len(encoded)], number // len(encoded)
        last = max(len(ids) - CONTINUED_TOKENS, 0)
        start = last * turn // max((count - 1) // len(encoded), 1)
        pieces.append([*begin, *ids[start : start + CONTINUED_TOKENS]])
    return _generated(runtime, pieces, max_tokens, CONTINUATION, emit)


def _generated(
    runtime: Runtime, ids: Sequence[list[int]], max_tokens: int, kind: int, emit: Emit
) -> list[Passage]:
    """Each prompt of token ids with the reference's greedy answer."""
    by_length = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    passages: dict[int, Passage] = {}
    for start in range(0, len(ids), AT_ONCE):
        chunk = by_length[start : start + AT_ONCE]
        for index, answer in zip(
            chunk, runtime.generate_batch([ids[i] for i in chunk], max_tokens), strict=True
        ):
            passages[index] = Passage([*ids[index], *answer], len(ids[index]) - 1, kind)
        emit(Progress(STAGE, len(passages), len(ids), "answers"))
    return [passages[index] for index in range(len(ids))]


def plain_text(tokenizer: TextTokenizer, texts: Iterable[str]) -> list[Passage]:
    """The first 256 tokens of each text, after BOS where the tokenizer adds it."""
    begin = tokenizer.begin_ids
    encoded = (tokenizer.encode(text)[:TEXT_TOKENS] for text in texts)
    return [Passage([*begin, *ids], len(begin) + len(ids), TEXT) for ids in encoded if ids]


def capture_own(
    runtime: Runtime,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[Message]],
    texts: Iterable[str],
    max_tokens: int,
    emit: Emit = ignore,
) -> HeldOut:
    """The reference's distributions on its own greedy answers to `prompts`, and on the plain `texts`.

    Each text begins as the tokenizer begins it: without BOS, Gemma computes nothing of use, and small differences grow.
    """
    passages = answered(runtime, tokenizer, prompts, max_tokens, emit)
    return capture_passages(runtime, [*passages, *plain_text(tokenizer, texts)], emit)


def capture_continued(
    runtime: Runtime,
    tokenizer: TextTokenizer,
    count: int,
    texts: Iterable[str],
    max_tokens: int,
    emit: Emit = ignore,
) -> HeldOut:
    """The reference's distributions on its own continuations of plain text, and on the plain `texts`.

    Each text begins as the tokenizer begins it, with BOS where it adds one: some base models compute nothing of use
    without it.
    """
    passages = continued(runtime, tokenizer, TEXTS, count, max_tokens, emit)
    return capture_passages(runtime, [*passages, *plain_text(tokenizer, texts)], emit)


def capture_passages(
    runtime: Runtime, passages: Sequence[Passage], emit: Emit = ignore, *, stage: str = STAGE
) -> HeldOut:
    """The reference's next-token distributions on the passages.

    The common beginning of all conversations is boilerplate of the template and counts once, not once for each row. Of
    continuations of plain text only the positions of the answer count.
    """
    shared = _shared_prefix([passage.ids for passage in passages if passage.kind == CONVERSATION])
    first, seen = [], False
    for passage in passages:
        spoken = passage.kind == CONVERSATION
        before = passage.answer if passage.kind == CONTINUATION else 0
        first.append(shared if spoken and seen else before)
        seen = seen or spoken
    reference = capture(runtime, [passage.ids for passage in passages], first, emit, stage=stage)
    return HeldOut(
        reference,
        np.array([passage.answer for passage in passages], np.int64),
        np.array([passage.kind for passage in passages], np.int64),
    )


def _shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    shortest = min(map(len, sequences), default=0)
    for place in range(shortest):
        if len({ids[place] for ids in sequences}) > 1:
            return place
    return max(shortest - 1, 0)
