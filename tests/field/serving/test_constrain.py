"""Answers of a given form: they parse, fit, and are the same kind of answer from both formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from field.serving.scripted import Running

import edgekit
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.field.serving import constrain
from edgekit.field.serving.constrain import Constraints
from edgekit.models.sampling import Sampling

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "intent": {"enum": ["log_hours", "close_job"]},
        "hours": {"type": "integer", "minimum": 0, "maximum": 24},
        "urgent": {"type": "boolean"},
    },
    "required": ["intent", "hours", "urgent"],
    "additionalProperties": False,
}
CHOICES = ["turn on", "turn on all", 'say "no"\n', "läuft 🚀"]
LOOSE = Sampling(temperature=2.0)


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def opened(request: Any, tiny_build: Any) -> Any:
    with edgekit.load(tiny_build.bundle, request.param, threads=1) as model:
        yield model, Constraints(tiny_build.bundle, model.runtime)


def answers(opened: Any, grammar: str, count: int = 6) -> list[str]:
    """Answers that would be anything at all at this temperature; the first is greedy."""
    model, constraints = opened
    found = []
    for seed in range(count):
        sampling = Sampling(LOOSE.temperature, 1.0, seed) if seed else Sampling()
        prompt = model.prompt([{"role": "user", "content": "Log 3 hours."}])
        process = constraints.processor(grammar)
        answer = model.answer(prompt, max_tokens=200, sampling=sampling, process=process)
        found.append("".join(answer))
        assert answer.finish == "stop"
    return found


def test_a_schema_is_kept(opened: Any) -> None:
    for text in answers(opened, constrain.of_schema(SCHEMA)):
        found = json.loads(text)
        assert set(found) == {"intent", "hours", "urgent"}
        assert found["intent"] in ("log_hours", "close_job") and type(found["urgent"]) is bool
        assert type(found["hours"]) is int and 0 <= found["hours"] <= 24


def test_a_closed_set_is_kept_and_all_of_it_can_be_said(opened: Any) -> None:
    found = set(answers(opened, constrain.of_choices(CHOICES), 24))
    assert found <= set(CHOICES) and len(found) > 1
    assert answers(opened, constrain.of_choices(['say "no"\n']), 2) == ['say "no"\n'] * 2


def test_without_the_grammar_such_answers_do_not_come(opened: Any) -> None:
    model, _ = opened
    prompt = model.prompt([{"role": "user", "content": "Log 3 hours."}])
    loose = "".join(model.answer(prompt, max_tokens=40, sampling=Sampling(2.0, 1.0, 3)))
    assert loose not in CHOICES
    with pytest.raises(ValueError):
        json.loads(loose)


@pytest.mark.parametrize(
    ("schema", "words"),
    [({"type": "nonsense"}, "nonsense"), ({"not": {}}, "not"), ({"type": "string", "pattern": "("}, "regex")],
)
def test_a_schema_that_cannot_be_held_is_refused_with_the_reason(
    opened: Any, schema: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        opened[1].processor(constrain.of_schema(schema))


def test_a_changed_tokenizer_is_not_used(tiny_build: Any, opened: Any, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_build.bundle, tmp_path / "bundle"))
    file = copy / "tokenizer" / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    grammar = constrain.of_choices(CHOICES)
    with pytest.raises(CorruptError, match="tokenizer"):
        Constraints(copy, opened[0].runtime).processor(grammar)
    with pytest.raises(ConfigError, match="plain model file"):
        Constraints(copy / "model.gguf", opened[0].runtime).processor(grammar)


def test_both_kinds_over_http(tiny: Running) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "job", "strict": True, "schema": SCHEMA}}
    choice = tiny.ask("Log 3 hours.", response_format=wanted, max_tokens=200).json()["choices"][0]
    assert set(json.loads(choice["message"]["content"])) == {"intent", "hours", "urgent"}
    one = tiny.ask("Log 3 hours.", choices=CHOICES, temperature=2.0).json()["choices"][0]["message"][
        "content"
    ]
    assert one in CHOICES
    refused = tiny.ask("x", response_format={**wanted, "json_schema": {"schema": {"type": "nonsense"}}})
    assert refused.status_code == 400 and "nonsense" in refused.json()["error"]["message"]
    anything = tiny.ask("x", response_format={"type": "json_object"}, max_tokens=1000).json()["choices"][0]
    if anything["finish_reason"] == "stop":
        assert isinstance(json.loads(anything["message"]["content"]), dict)
    assert tiny.ask("x", max_tokens=4).status_code == 200
