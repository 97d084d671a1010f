"""Samples side by side: what differs, what changed inside an answer, and logs from anywhere."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_support import ASKED, PROMPT, write_bundle

from edgekit.app.views import samples
from edgekit.evaluation.compare import compare


def test_the_users_words_are_told_from_the_template(tmp_path: Path) -> None:
    found = samples.read(write_bundle(tmp_path / "b"))
    assert [sample.asked for sample in found.samples] == ASKED
    assert found.variants == ("tuned", "gguf", "onnx", "base") and found.faults == ()


@pytest.mark.parametrize(
    "template",
    [
        PROMPT,
        "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s>[INST] {} [/INST]",
    ],
)
def test_templates_of_other_families_are_taken_off_too(template: str) -> None:
    asked = ["Which one is it?", "Who is it?", "Why is it?"]
    prompts = [template.format(text) for text in asked]
    start, end = samples.shared(prompts)
    assert [prompt[start : len(prompt) - end].strip() for prompt in prompts] == asked


def test_one_prompt_alone_is_shown_whole() -> None:
    assert samples.shared(["<user>hello"]) == (0, 0)


def test_counts_agree_with_the_shells_comparison(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    found = samples.read(bundle)
    assert found.counts("gguf") == {"same": 2, "changed": 1, "better": 0, "worse": 1}
    shell = compare(bundle / "samples" / "tuned.jsonl", bundle / "samples" / "gguf.jsonl")
    assert len(shell["lost"]) == 1 and shell["won"] == []
    difference = samples.differences(found, "tuned", "gguf")
    assert (difference[1].first, difference[1].second) == ("1", "0")
    assert f"{shell['mcnemar_p']:.2g}" in difference[1].change


def test_only_those_that_differ_are_shown_unless_all_are_asked_for(tmp_path: Path) -> None:
    found = samples.read(write_bundle(tmp_path / "b"))
    assert [sample.id for sample in found.shown()] == ["row-1", "row-3"]
    assert len(found.shown(all_=True)) == 4
    assert [sample.id for sample in found.shown(filter_="WORSE")] == ["row-1"]
    assert [sample.id for sample in found.shown(filter_="tea changed")] == ["row-3"]
    assert found.shown(filter_="nothing like it") == []


def test_what_changed_is_told_by_words() -> None:
    before, after = '{"who":"the invoce","n":1}', '{"who":"the invoice","n":1}'
    same = [("same", '{"who":"the '), ("gone", "invoce"), ("new", "invoice"), ("same", '","n":1}')]
    assert samples.pieces(before, after) == same
    assert samples.pieces("same", "same") == [("same", "same")]
    assert samples.pieces("", "new") == [("new", "new")] and samples.pieces("old", "") == [("gone", "old")]


@given(st.text(max_size=60), st.text(max_size=60))
def test_pieces_hold_both_answers_whole(before: str, after: str) -> None:
    pieces = samples.pieces(before, after)
    assert "".join(text for kind, text in pieces if kind != "gone") == after
    if before != after:
        assert "".join(text for kind, text in pieces if kind != "new") == before


def test_very_long_answers_are_compared_in_no_time() -> None:
    start = time.perf_counter()
    assert samples.pieces("a b " * 20_000, "b c " * 20_000)[0][0] == "gone"
    assert time.perf_counter() - start < 1


def test_damaged_lines_are_left_out_and_told(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    log = bundle / "samples" / "gguf.jsonl"
    bad = ['{"id": 1', "[]", "7", '{"id": "x"}', '{"id": {}, "answer": null}']
    log.write_text(log.read_text() + "\n".join(bad))
    found = samples.read(bundle)
    assert len(found.samples) == 4 and found.counts("gguf")["worse"] == 1
    assert "5 lines of" in found.faults[0] and str(bundle) in found.faults[0]


def test_missing_logs_are_told_in_words(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    (bundle / "samples" / "tuned.jsonl").unlink()
    found = samples.read(bundle)
    assert "tuned.jsonl is not there" in found.faults[0] and found.shown() == []
    for path in (bundle / "samples").iterdir():
        path.unlink()
    assert "no samples" in samples.read(bundle).faults[-1]
    (bundle / "samples").rmdir()
    assert "is not there" in samples.read(bundle).faults[0]


def test_answers_cannot_drive_the_terminal_and_values_of_other_kinds_are_texts(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b")
    row = {
        "id": 7,
        "label": 3,
        "prompt": "a\x1b[2Jb",
        "answer": ["\x1b]0;x\x07"],
        "correct": "yes",
        "confidence": 9,
    }
    (bundle / "samples" / "gguf.jsonl").write_text(json.dumps(row))
    sample = next(each for each in samples.read(bundle).samples if each.id == "7")
    answer = sample.answers["gguf"]
    assert "\x1b" not in sample.asked + answer.text and "\x07" not in answer.text
    assert answer.correct is False


def test_the_document_counts_and_names_what_is_shown(tmp_path: Path) -> None:
    found = samples.read(write_bundle(tmp_path / "b"))
    document = samples.document(found, found.shown())
    assert document["counts"]["gguf"]["worse"] == 1
    first = document["samples"][0]
    assert (
        first["answers"]["gguf"] == {"text": "at war", "correct": False} and first["kinds"]["gguf"] == "worse"
    )
    assert json.dumps(document)
