"""Held-out passages: the reference's own answers, counted up to the stop token and no further."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fake_runtime import FakeRuntime, bigram

from edgekit.models.chat import Message
from edgekit.proof import gates, held_out
from edgekit.proof.drift import score
from edgekit.proof.held_out import HeldOut, capture_continued, capture_own
from edgekit.targets.target import Budget

STOP = 258
WORDS = b"\n ABC"  # after a prompt's last newline the model says " ABC" and stops


def chain(*words: bytes, stop: int = STOP) -> FakeRuntime:
    """A model that continues each of `words` byte by byte and stops after it."""
    table = np.zeros((259, 259), np.float32)
    for word in words:
        for here, following in zip(word, [*word[1:], stop], strict=True):
            table[here, following] = 9.0
    return FakeRuntime(table)


MODEL = chain(WORDS)
PROMPTS: list[list[Message]] = [[{"role": "user", "content": f"question {number}"}] for number in range(30)]


def captured(texts: tuple[str, ...] = ()) -> HeldOut:
    return capture_own(MODEL, MODEL, PROMPTS, texts, max_tokens=16)


def test_a_passage_ends_where_its_answer_does_and_each_answer_has_one_end() -> None:
    own = captured()
    for passage in own.passages:
        assert passage.ids[passage.answer :] == list(WORDS)
        assert STOP not in passage.ids[passage.answer :]
    scored = score(MODEL, own.reference)
    answers = own.answers(scored)
    assert answers.sum() == 30 * len(WORDS)  # the last newline of the prompt and the four tokens after it
    assert (scored.expected[answers] == STOP).sum() == 30
    gate = gates.stop_contract(scored, answers, MODEL.stop_ids, Budget(), "gguf", "s")
    assert gate.passed and gate.n == 30 and gate.detail == "30 of 30 reference answers end with a stop token"


def test_a_file_that_does_not_stop_after_the_answer_is_refused() -> None:
    own = captured()
    late = chain(WORDS)
    late.table[ord("C")] = late.table[ord(" ")]  # goes on after the last letter
    scored = score(late, own.reference)
    gate = gates.stop_contract(scored, own.answers(scored), MODEL.stop_ids, Budget(), "gguf", "s")
    assert not gate.passed and gate.value == 0 and "missed stops: 30, early stops: 0" in gate.detail


def test_greedy_agreement_follows_what_the_reference_says_itself() -> None:
    own = captured()
    other = chain(b"\n AB", b"C")
    other.table[ord("B"), [STOP, ord("X")]] = 0.0, 9.0  # parts at the fourth of five tokens
    scored = score(other, own.reference)
    gate = gates.greedy_agreement(scored, own.answers(scored), MODEL.stop_ids, Budget(), "gguf", "s")
    assert not gate.passed and abs(gate.value - 3 / 5) < 1e-9
    same = score(MODEL, own.reference)
    assert gates.greedy_agreement(same, own.answers(same), MODEL.stop_ids, Budget(), "gguf", "s").value == 1.0


def test_a_model_that_cannot_be_asked_continues_plain_text() -> None:
    """Only the continuation counts, and each text begins as the tokenizer begins it."""
    model, other = FakeRuntime(), FakeRuntime(bigram(seed=1))  # no two tokens are equally likely
    own = capture_continued(model, model, 5, ["ABC"], max_tokens=16)
    *continued, text = own.passages
    assert len(continued) == 5 and len({tuple(passage.ids) for passage in continued}) == 5
    assert text.ids == [256, *b"ABC"] and text.kind == held_out.TEXT
    for passage in continued:
        assert passage.ids[0] == 256 and passage.answer == held_out.CONTINUED_TOKENS
    scored, found = score(model, own.reference), score(other, own.reference)
    counted = own.answers(scored)
    assert (counted == ~own.text(scored)).all() and not own.conversations(scored).any()
    assert gates.greedy_agreement(scored, counted, MODEL.stop_ids, Budget(), "gguf", "s").value == 1.0
    assert gates.greedy_agreement(found, counted, MODEL.stop_ids, Budget(), "gguf", "s").value < 1.0


def test_plain_text_is_no_answer_and_a_store_is_read_back(tmp_path: Path) -> None:
    own = captured(("Some plain text.", "More of it."))
    own.save(tmp_path)
    read = HeldOut.load(tmp_path)
    assert read.passages == own.passages
    scored = score(MODEL, read.reference)
    assert read.text(scored).sum() == len("Some plain text.More of it.") + 2  # after BOS, which begins each
    assert not (read.text(scored) & read.answers(scored)).any()
