"""Greedy answers to many prompts, computed in batches of similar length."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.base.events import Emit, Progress
from edgekit.data.rows import Message, Row
from edgekit.device.prompt import encode_prompt
from edgekit.evaluation.kept import Kept
from edgekit.registry import AnswersConversations, Runtime

Model = Runtime | AnswersConversations
"""What answers: a model file in its runtime, or a model that is no file."""
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


def prompt_text(model: Model, messages: Sequence[Message]) -> str:
    """The prompt as the model's own template renders it; of a model that is no file, the messages in JSON."""
    if isinstance(model, AnswersConversations):
        return json.dumps([dict(message) for message in messages], ensure_ascii=False)
    return model.chat_template.render(messages, add_generation_prompt=True)


def sample_of(
    model: Model, row: Row, messages: Sequence[Message] | None = None, **more: Any
) -> dict[str, Any]:
    """A sample of `row` without the answer, with the values `more`; `messages` are asked in place of its own."""
    prompt = prompt_text(model, messages or row.messages[:-1])
    return {"id": row.id, **more, "label": row.label, "prompt": prompt, "expected": row.answer.strip()}


def fill(
    model: Model,
    samples: Sequence[dict[str, Any]],
    conversations: Sequence[Sequence[Message]],
    max_tokens: int,
    kept: Kept | None = None,
) -> Iterator[int]:
    """Ask the samples that have no answer yet; yields how many were answered at once.

    `conversations` are the messages before each answer. A sample has `prompt` and `expected`, and gets `answer` and
    `correct`: whether both are equal. Where `expected` is None, any answer may come, and there is no `correct`. Answers in
    `kept` are not asked again, and it gets the new ones.
    """
    if kept is not None and (again := sum(known(sample, kept) for sample in samples)):
        yield again
    missing = [index for index, sample in enumerate(samples) if "answer" not in sample]
    expected = [samples[index]["expected"] for index in missing]
    for chunk in _replies(model, [conversations[index] for index in missing], expected, max_tokens):
        new = [samples[missing[index]] for index in chunk]
        for sample, answer in zip(new, chunk.values(), strict=True):
            _answer(sample, answer)
        if kept is not None:
            kept.add(new)
        yield len(new)


def _replies(
    model: Model, conversations: Sequence[Sequence[Message]], expected: Sequence[str | None], max_tokens: int
) -> Iterator[dict[int, str]]:
    """The greedy answers to conversations by position, some at a time.

    For a model file, messages are encoded as an endpoint does, which keeps control tokens in them as text.
    """
    if isinstance(model, AnswersConversations):
        for start in range(0, len(conversations), CHUNK):
            yield dict(enumerate(model.answers(conversations[start : start + CHUNK], max_tokens), start))
        return
    asked = [
        Asked(encode_prompt(model, messages), max_tokens if text is None else len(model.encode(text)))
        for messages, text in zip(conversations, expected, strict=True)
    ]
    yield from answered(model, asked, max_tokens)


def known(sample: dict[str, Any], kept: Kept) -> bool:
    """Give a sample without an answer the kept one; whether there was one."""
    answer = None if "answer" in sample else kept.answer(sample["prompt"], sample["expected"])
    if answer is not None:
        _answer(sample, answer)
    return answer is not None


def _answer(sample: dict[str, Any], answer: str) -> None:
    sample["answer"] = answer
    if sample["expected"] is not None:
        sample["correct"] = answer == sample["expected"]


@dataclass(frozen=True)
class Free:
    """How questions without a known answer are asked: the longest answer in tokens, and the system message before each."""

    max_tokens: int
    system: str = ""


def answer_freely(
    model: Model, questions: Sequence[Mapping[str, Any]], free: Free, kept: Kept, emit: Emit, stage: str
) -> list[dict[str, Any]]:
    """A sample of each of `questions`, which have their text as `question`, with the model's answer, greedy."""
    system: list[Message] = [{"role": "system", "content": free.system}] if free.system else []
    conversations = [[*system, {"role": "user", "content": str(one["question"])}] for one in questions]
    samples = [
        {**one, "prompt": prompt_text(model, asked), "expected": None}
        for one, asked in zip(questions, conversations, strict=True)
    ]
    done = 0
    for count in fill(model, samples, conversations, free.max_tokens, kept):
        done += count
        emit(Progress(stage, done, len(samples), "answers"))
    return samples
