"""The loss mask: it covers the answer with its stop token, and nothing of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from edgekit.base.errors import ConfigError, StageError
from edgekit.data.rows import Row
from edgekit.models.chat import ChatTemplate
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.tuning.encode import IGNORED, EncodedRow, check_mask, encode_rows, show_mask

STOP = "<|im_end|>"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> ModelTokenizer:
    return ModelTokenizer(tiny_llama)


def row(question: str = "Is it on?", answer: str = "Yes.", name: str = "r") -> Row:
    return Row(
        name, ({"role": "user", "content": question}, {"role": "assistant", "content": answer}), None, 1
    )


def encode_one(tokenizer: ModelTokenizer, one: Row) -> EncodedRow:
    rows, _ = encode_rows([one], tokenizer.chat_template, tokenizer, 4096)
    return rows[0]


def plain(tokenizer: ModelTokenizer, ids: list[int]) -> str:
    return str(tokenizer.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=TEXT, answer=TEXT)
@example(question="x", answer="\n\nafter a line break")  # the tokenizer would join it with the prompt's own
@example(question="x", answer=" a")
def test_supervised_ids_are_the_answer_with_its_stop_token(
    tokenizer: ModelTokenizer, question: str, answer: str
) -> None:
    assume(tokenizer.stop_ids.isdisjoint(tokenizer.encode(answer)))  # else the row is left out
    assume(
        plain(tokenizer, tokenizer.encode(answer)) == answer
    )  # the vocabulary lacks a few bytes of rare planes
    encoded = encode_one(tokenizer, row(question, answer))
    supervised = [label for label in encoded.labels if label != IGNORED]
    prompt, _ = tokenizer.chat_template.prompt_and_answer(row(question, answer).messages)
    assert plain(tokenizer, supervised) == answer + STOP
    assert encoded.input_ids[: encoded.prompt_length] == tokenizer.encode(prompt)
    assert encoded.labels[: encoded.prompt_length] == [IGNORED] * encoded.prompt_length
    assert encoded.labels[encoded.prompt_length :] == encoded.input_ids[encoded.prompt_length :]


def test_a_merge_over_the_boundary_is_told_and_the_prompt_keeps_its_ids(tokenizer: ModelTokenizer) -> None:
    merged = encode_one(tokenizer, row(answer="\n\nafter"))
    assert merged.boundary_merge
    assert not encode_one(tokenizer, row(answer="after")).boundary_merge
    assert (
        merged.input_ids[: merged.prompt_length]
        == encode_one(tokenizer, row()).input_ids[: merged.prompt_length]
    )


def test_only_the_last_answer_of_a_conversation_is_learned(tokenizer: ModelTokenizer) -> None:
    messages = (*row("one?", "first").messages, *row("two?", "second").messages)
    encoded = encode_one(tokenizer, Row("r", messages))
    assert plain(tokenizer, [label for label in encoded.labels if label != IGNORED]) == "second" + STOP


def test_rows_that_cannot_be_learned_from_are_left_out_by_name(tokenizer: ModelTokenizer) -> None:
    rows = [
        row(),
        row("long " * 100, name="long"),
        row(answer=f"Yes.{STOP} No.", name="stop"),
        row(answer=" ", name="none"),
    ]
    encoded, left_out = encode_rows(rows, tokenizer.chat_template, tokenizer, 64)
    assert [one.id for one in encoded] == ["r"]
    assert [line.split(" (")[0] for line in left_out] == ["row long", "row stop", "row none"]
    assert "tokens, more than max_length 64" in left_out[0]
    with pytest.raises(ConfigError) as error:
        encode_rows(rows[1:], tokenizer.chat_template, tokenizer, 64)
    assert "max_length" in error.value.hint
    assert error.value.faults == left_out


@pytest.mark.parametrize(
    "fault",
    [
        lambda source: source.replace("'<|im_end|>' + '\n'", "'\n'"),  # prints no stop token
        lambda source: source.replace(
            "'<|im_start|>assistant\n'", "'<|im_start|>model\n'"
        ),  # prompt is no prefix
    ],
)
def test_a_template_that_breaks_the_mask_is_refused(
    tokenizer: ModelTokenizer, fault: Callable[[str], str]
) -> None:
    source = fault(tokenizer.chat_template.source)
    assert source != tokenizer.chat_template.source
    with pytest.raises(ConfigError):
        encode_rows([row()], ChatTemplate(source), tokenizer, 64)


def test_shown_spans_are_the_supervised_ones(tokenizer: ModelTokenizer) -> None:
    rows, _ = encode_rows([row(), row(name="s")], tokenizer.chat_template, tokenizer, 64)
    lines = show_mask(rows, tokenizer, 1)
    assert len(lines) == 1
    assert lines[0].startswith("r: <|im_start|>system⏎")
    assert lines[0].endswith(f"<|im_start|>user⏎Is it on?{STOP}⏎<|im_start|>assistant⏎⟦Yes.{STOP}⟧")


def test_a_wrong_mask_is_refused(tokenizer: ModelTokenizer) -> None:
    one = encode_one(tokenizer, row())
    size, prompt = len(one.input_ids), one.prompt_length
    check_mask([one], [one.labels + [IGNORED, IGNORED]])  # padding after the row is fine
    faults = {
        "supervises nothing": [IGNORED] * size,
        "covers its prompt": [IGNORED] * (prompt - 1) + one.input_ids[prompt - 1 :],
        "is not its answer": [IGNORED] * (size - 1) + one.input_ids[-1:],
    }
    for message, labels in faults.items():
        with pytest.raises(StageError, match=message):
            check_mask([one], [labels])
    with pytest.raises(StageError, match="covers its prompt"):
        check_mask([EncodedRow("r", one.input_ids, 0)], [one.input_ids])
