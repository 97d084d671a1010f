"""`edgekit run --min-confidence` and `--refuse-out-of-scope`: what is printed of an answer, and of one that is not given."""

from __future__ import annotations

import json
from typing import Any

import pytest
from field.serving.scripted import LABELS, Sure

from edgekit.cli import main
from edgekit.device.confidence import Calibration


@pytest.fixture
def typed(monkeypatch: Any, capsys: Any) -> Any:
    """Type `edgekit run` with a model that is sure of some answers."""

    def run(*words: str, code: int = 0) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["run", *words])
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        return said

    monkeypatch.setattr("edgekit.load", lambda *given, **options: Sure().loaded())
    return run


def test_an_answer_that_is_sure_enough_is_printed(typed: Any) -> None:
    assert typed("bundle", "please open").out == "open\n"
    sure = typed("bundle", "please open", "--min-confidence", "0.8")
    assert sure.out == "open\n" and sure.err == ""
    assert json.loads(typed("bundle", "please open", "--json").out) == {"format": "gguf", "answer": "open"}
    found = json.loads(typed("bundle", "please open", "--min-confidence", "0.8", "--json").out)
    assert found["answer"] == "open" and found["confidence"] > 0.9 and found["abstained"] is False


@pytest.mark.parametrize(
    ("question", "words"),
    [("perhaps open", "25.0 % is below 80.0 %"), ("please dance", "not one of the labels")],
)
def test_another_is_not_and_the_reason_is_told(typed: Any, question: str, words: str) -> None:
    said = typed("bundle", question, "--min-confidence", "0.8")
    assert said.out == "" and words in said.err.replace("%", " %").replace("  ", " ")
    found = json.loads(typed("bundle", question, "--min-confidence", "0.8", "--json").out)
    assert found["answer"] is None and found["abstained"] is True
    assert json.loads(typed("bundle", question, "--min-confidence", "0", "--json").out)["answer"]


def test_an_answer_that_was_cut_is_not_given(typed: Any) -> None:
    said = typed("bundle", "do open_all", "--max-tokens", "4", "--min-confidence", "0.5", "--json")
    nothing = {"format": "gguf", "answer": None, "confidence": None, "abstained": True, "in_scope": None}
    assert json.loads(said.out) == nothing


def test_a_chat_goes_on_after_an_answer_that_is_not_given(typed: Any, monkeypatch: Any) -> None:
    questions = iter(["please open", "perhaps open", "please close"])

    def typed_line(prompt: str) -> str:
        try:
            return next(questions)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed_line)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    said = typed("bundle", "--min-confidence", "0.8")
    assert said.out == "open\nclose\n" and said.err.count("No answer is given") == 1


def test_a_share_is_between_0_and_1(typed: Any) -> None:
    for given in ("80", "-0.1", "nan", "autox", ""):
        said = typed("bundle", "q", "--min-confidence", given, code=2)
        assert f"--min-confidence {given} is neither a number between 0 and 1 nor auto" in said.err


def test_auto_is_the_threshold_of_the_bundle(typed: Any) -> None:
    assert typed("bundle", "please open", "--min-confidence", "auto").out == "open\n"
    said = typed("bundle", "perhaps open", "--min-confidence", "auto")
    assert said.out == "" and "is below 80.0%" in said.err


def test_a_request_out_of_scope_gets_no_answer(typed: Any) -> None:
    assert typed("bundle", "please open", "--refuse-out-of-scope").out == "open\n"
    said = typed("bundle", "please dance", "--refuse-out-of-scope")
    assert said.out == "" and "out of scope, as the largest score of -2.000 is below -1.000" in said.err
    said = typed("bundle", "please beyond", "--refuse-out-of-scope", "--min-confidence", "auto")
    assert said.out == "" and "the model itself answers that the request is out of scope" in said.err
    found = json.loads(typed("bundle", "please dance", "--refuse-out-of-scope", "--json").out)
    assert found == {
        "format": "gguf",
        "answer": None,
        "confidence": None,
        "abstained": True,
        "in_scope": False,
    }
    given = json.loads(typed("bundle", "please open", "--refuse-out-of-scope", "--json").out)
    assert given["answer"] == "open" and given["in_scope"] is True and given["abstained"] is False


@pytest.mark.parametrize("option", ["--min-confidence=auto", "--refuse-out-of-scope"])
def test_a_bundle_without_a_threshold_is_not_asked(typed: Any, monkeypatch: Any, option: str) -> None:
    model = Sure().loaded()
    model.calibration = Calibration(LABELS, 0.5)
    monkeypatch.setattr("edgekit.load", lambda *given, **options: model)
    said = typed("bundle", "please open", option, code=2)
    assert said.out == "" and option.split("=")[0] in said.err and "build the bundle again" in said.err


@pytest.mark.parametrize("option", ["--min-confidence=0.8", "--refuse-out-of-scope"])
def test_a_model_without_a_calibration_is_not_asked(small_gguf: Any, capsys: Any, option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", str(small_gguf), "q", option, "--threads", "1"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and "has no calibration" in said.err and said.out == ""
    assert "Leave out --min-confidence and --refuse-out-of-scope" in said.err
