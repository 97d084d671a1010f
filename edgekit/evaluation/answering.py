"""Greedy answers to many prompts, computed in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgekit.registry import Runtime

CHUNK = 24  # prompts answered between two readings of the progress


@dataclass(frozen=True)
class Asked:
    """The token ids of a prompt, and the number of tokens of the answer that is expected."""

    ids: Sequence[int]
    expected: int

    @property
    def most(self) -> int:
        """The number of tokens after which the answer is cut."""
        return cut_after(self.expected)


def cut_after(expected: int) -> int:
    """The number of tokens after which an answer is cut: longer ones than `expected` are wrong and may never end."""
    return round(1.25 * expected) + 4


def answered(runtime: Runtime, asked: Sequence[Asked], max_tokens: int) -> Iterator[dict[int, str]]:
    """The answers to `asked` by position, 24 at a time, without surrounding whitespace.

    Prompts whose answers are of similar length are asked together. An answer is cut after `max_tokens` tokens, or where it
    is much longer than the expected one, so it does not depend on the prompts beside it.
    """
    by_length = sorted(range(len(asked)), key=lambda index: (asked[index].expected, len(asked[index].ids)))
    for start in range(0, len(asked), CHUNK):
        chunk = by_length[start : start + CHUNK]
        enough = min(max_tokens, max(asked[index].most for index in chunk))
        answers = runtime.generate_batch([asked[index].ids for index in chunk], enough)
        yield {
            index: runtime.decode(answer[: asked[index].most]).strip()
            for index, answer in zip(chunk, answers, strict=True)
        }
