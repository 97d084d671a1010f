"""Rows as token ids with a loss mask: only the answer is learned, not the prompt.

    <|im_start|>user⏎Is it on?<|im_end|>⏎<|im_start|>assistant⏎ ⟦Yes.<|im_end|>⟧
    └────────────── prompt, as the runtime gets it ───────────┘ └─ supervised ─┘

The prompt's ids are those of the rendered prompt alone, which is what the model gets on the device. Text that the
template prints after the stop token is cut off, because generation ends there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from edgekit.base.errors import ConfigError, StageError
from edgekit.data.rows import Row
from edgekit.models.chat import ChatTemplate
from edgekit.models.tokenizer import ModelTokenizer

IGNORED = -100  # torch.nn.functional.cross_entropy's ignore_index


@dataclass(frozen=True)
class EncodedRow:
    """One conversation as ids; those after `prompt_length` are the answer with its stop token.

    `boundary_merge` says that the tokenizer would join the end of the prompt with the start of the answer if it got the
    whole text at once.
    """

    id: str
    input_ids: list[int]
    prompt_length: int
    boundary_merge: bool = False

    @property
    def labels(self) -> list[int]:
        """The ids to learn, `(T,)`, with `IGNORED` at the positions of the prompt."""
        return [IGNORED] * self.prompt_length + self.input_ids[self.prompt_length :]


Example = tuple[EncodedRow, ...]
"""What is trained as one: a row, or a row beside its noisy twin."""


class _LeftOut(Exception):
    """Why a row cannot be used."""


def encode_rows(
    rows: Sequence[Row], template: ChatTemplate, tokenizer: ModelTokenizer, max_length: int
) -> tuple[list[EncodedRow], list[str]]:
    """The rows that can be used, and one line on each that is left out.

    Raises `ConfigError` when no row is left, when the template prints no stop token after an answer, and when
    it does not begin a conversation with its own prompt.
    """
    encoded: list[EncodedRow] = []
    left_out: list[str] = []
    for row in rows:
        try:
            encoded.append(_encode(row, template, tokenizer, max_length))
        except _LeftOut as reason:
            left_out.append(f"row {row.id} (line {row.line}): {reason}")
    if not encoded:
        raise ConfigError(
            f"None of the {len(rows)} rows can be used; nothing was started.",
            f"Increase max_length above {max_length} or fix the rows.",
            faults=left_out,
        )
    return encoded, left_out


def encode_variant(
    row: Row, template: ChatTemplate, tokenizer: ModelTokenizer, max_length: int, otherwise: EncodedRow
) -> EncodedRow:
    """A changed form of a row as ids; `otherwise`, its usual form, when the change makes it too long or is not accepted.

    A chat template may refuse a system message, and noise may make a row too long.
    """
    try:
        return _encode(row, template, tokenizer, max_length)
    except (_LeftOut, ConfigError):
        return otherwise


def _encode(row: Row, template: ChatTemplate, tokenizer: ModelTokenizer, max_length: int) -> EncodedRow:
    if not row.answer.strip():
        raise _LeftOut("it has no answer")
    if not tokenizer.stop_ids.isdisjoint(tokenizer.encode(row.answer)):
        raise _LeftOut("its answer contains the model's stop token")
    prompt_text, answer_text = template.prompt_and_answer(row.messages)
    prompt, whole = tokenizer.encode(prompt_text), tokenizer.encode(prompt_text + answer_text)
    boundary_merge = whole[: len(prompt)] != prompt
    answer = tokenizer.encode(answer_text) if boundary_merge else whole[len(prompt) :]
    length = next((place for place, token in enumerate(answer, 1) if token in tokenizer.stop_ids), None)
    if length is None:
        raise ConfigError(
            "The chat template prints no stop token after an answer; a model tuned with it would never stop.",
            "Use the model's own chat template, or name its end-of-turn token in generation_config.json.",
        )
    ids = prompt + answer[:length]
    if len(ids) > max_length:
        raise _LeftOut(f"{len(ids)} tokens, more than max_length {max_length}")
    return EncodedRow(row.id, ids, len(prompt), boundary_merge)


def check_mask(rows: Sequence[EncodedRow], labels: Sequence[Sequence[int]]) -> None:
    """Raise `StageError` unless `labels` cover every token of each answer and no token of a prompt."""
    for row, line in zip(rows, labels, strict=True):
        supervised = [place for place, label in enumerate(line) if label != IGNORED]
        if not supervised:
            fault = "supervises nothing"
        elif supervised[0] < max(row.prompt_length, 1):
            fault = "covers its prompt"
        elif supervised != list(range(row.prompt_length, len(row.input_ids))):
            fault = "is not its answer"
        else:
            continue
        raise StageError(
            f"The loss mask of row {row.id} {fault}; nothing was tuned.",
            "Look at the mask with --show-mask 3; the cause is this row or the chat template.",
        )


def show_mask(rows: Sequence[EncodedRow], tokenizer: ModelTokenizer, n: int) -> list[str]:
    """One line of plain text for each of the first `n` rows: supervised spans between ⟦ and ⟧, line breaks as ⏎."""
    lines = []
    for row in rows[:n]:
        text = ""
        for supervised, span in groupby(
            zip(row.input_ids, row.labels, strict=True), lambda pair: pair[1] != IGNORED
        ):
            part = tokenizer.tokenizer.decode(
                [token for token, _ in span], clean_up_tokenization_spaces=False
            )
            text += f"⟦{part}⟧" if supervised else part
        lines.append(f"{row.id}: {text}".replace("\n", "⏎"))
    return lines
