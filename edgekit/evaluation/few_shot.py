"""Few-shot prompting of a base model: each prompt starts with an explanation of the task and examples.

A base model does not know the form of the answers, so its 0-shot accuracy says little about the gain from tuning.
Brown et al., Language Models are Few-Shot Learners, 2020 <https://arxiv.org/abs/2005.14165>.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from edgekit.base.errors import ConfigError
from edgekit.data.rows import Message, Row
from edgekit.models.chat import ChatTemplate
from edgekit.registry import AnswersConversations, Runtime

MOST_SHOTS = 8
MOST_ROWS = 64
CONTEXT = 2048  # tokens; the runtimes open a model with this context if it supports it
MOST_NAMES = 40
SEED = 7


@dataclass(frozen=True)
class FewShot:
    """The beginning of each prompt: an explanation of the task and training rows as examples."""

    task: str
    examples: tuple[Row, ...]

    def render(self, row: Row, template: ChatTemplate) -> str:
        """The prompt of `row`."""
        return template.render(self.messages(row, template), add_generation_prompt=True)

    def messages(self, row: Row, template: ChatTemplate | None) -> Sequence[Message]:
        """The messages before the answer to `row`; a template without system messages gets the explanation in the first question.

        Without a template, as of a model that is no file, system messages are taken to be allowed.
        """
        if not self.task:
            return row.messages[:-1]
        asked = row.messages[:-1]
        system = [message["content"] for message in asked if message["role"] == "system"]
        shown = [message for example in self.examples for message in example.messages]
        turns = [message for message in (*shown, *asked) if message["role"] != "system"]
        task = "\n\n".join([self.task, *system])
        told: list[Message] = [{"role": "system", "content": task}, *turns]
        try:
            if template is not None:
                template.render(told, add_generation_prompt=True)
        except ConfigError:
            first: Message = {"role": turns[0]["role"], "content": f"{task}\n\n{turns[0]['content']}"}
            return [first, *turns[1:]]
        return told


def prepare(
    runtime: Runtime | AnswersConversations,
    train: Sequence[Row],
    rows: Sequence[Row],
    max_tokens: int,
    context: int = CONTEXT,
    most: int = MOST_SHOTS,
) -> FewShot:
    """At most `most` training rows that fit the context before the longest of `rows`, with different labels first.

    The choice is the same on every call. If not even the explanation fits `context` tokens, nothing is added. Raises
    `ConfigError` for a model that is no file, whose tokens cannot be counted.
    """
    if isinstance(runtime, AnswersConversations):
        raise ConfigError(
            "An endpoint shows no tokens, so it is not known how many examples fit.",
            "Leave out --shots, or give the model file itself.",
        )
    chosen, task = _varied(train)[:most], describe(train)
    large = sorted(rows, key=lambda row: -sum(len(message["content"]) for message in row.messages[:-1]))[:3]
    for count in range(len(chosen), -1, -1):
        shots = FewShot(task, tuple(chosen[:count]))
        longest = max(len(runtime.encode(shots.render(row, runtime.chat_template))) for row in large)
        if longest + max_tokens <= context:
            return shots
    return FewShot("", ())


def sample(rows: Sequence[Row]) -> list[Row]:
    """At most 64 of the rows, drawn with a fixed seed, in their original order."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return [rows[index] for index in sorted(Random(SEED).sample(range(len(rows)), MOST_ROWS))]


def describe(train: Sequence[Row]) -> str:
    """A description of the task from the training rows: the form of the answers, their keys and their labels."""
    lines = ["Answer the last message in exactly the form that the examples show. Add nothing else."]
    answers = [_parsed(row.answer) for row in train]
    if answers and all(isinstance(answer, dict) for answer in answers):
        keys = list(dict.fromkeys(str(key) for answer in answers for key in answer or {}))
        lines.append(f"Each answer is one JSON object with keys among: {', '.join(keys[:MOST_NAMES])}.")
    labels = sorted({row.label for row in train if row.label is not None})
    if 1 < len(labels) <= MOST_NAMES:
        lines.append(f"The answer is of one of these kinds: {', '.join(labels)}.")
    return "\n".join(lines)


def _parsed(answer: str) -> dict[str, object] | None:
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _varied(train: Sequence[Row]) -> list[Row]:
    """The rows in a fixed random order, starting with one row of each label."""
    shuffled = list(train)
    Random(SEED).shuffle(shuffled)
    seen: dict[str | None, int] = {}
    rank = []
    for row in shuffled:
        seen[row.label] = seen.get(row.label, -1) + 1
        rank.append(seen[row.label])
    return [row for _, row in sorted(zip(rank, shuffled, strict=True), key=lambda pair: pair[0])]
