"""A chat template that a person gives: to a model without one, or in place of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import makers
import pytest
import tiny
import vocabularies
from fake_runtime import CHATML

from edgekit.base.cache import Cache
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.base.events import Event, GateResult, ignore
from edgekit.build.request import Order
from edgekit.containers.gguf import read_gguf
from edgekit.export.gguf import write as exporter
from edgekit.models import given_template, source, tokenizer_files
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof.source import bring_in

QUESTION: list[Any] = [{"role": "user", "content": "Hi"}]
OWN = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make(tmp_path_factory.mktemp("base") / "model", tokens=vocabularies.for_transformers())


def given(base: Path, out: Path, template: str) -> ModelTokenizer:
    order = Order(model=str(base), chat_template=template)
    source.bring_in(order.request().source, out)
    return ModelTokenizer(out)


def test_chatml_uses_the_tokens_of_the_vocabulary_and_its_end_becomes_a_stop(
    base: Path, tmp_path: Path
) -> None:
    assert not source.has_template(source.resolve(str(base)))
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    (base / "generation_config.json").write_text('{"eos_token_id": 0, "temperature": 0.5}')
    before["generation_config.json"] = (base / "generation_config.json").read_bytes()
    found = given(base, tmp_path / "out", "chatml")
    end = found.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert found.stop_ids == {0, end}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.5
    text = found.chat_template.render(QUESTION, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert "plain text" not in given_template.told(found)
    # the folder that it came from is linked, not changed
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before


def test_tokens_that_the_vocabulary_lacks_are_plain_text_and_its_own_end_ends_a_message(
    tmp_path: Path,
) -> None:
    """Gemma's tokenizer, which begins every text with BOS; stripped of its template it is the base model's."""
    model = makers.make(tmp_path / "model", "gemma3")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    settings["eos_token"] = "<eos>"  # as in the base model's files
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    assert ModelTokenizer(model).template is None
    found = given(model, tmp_path / "out", "chatml")
    text = found.chat_template.render(QUESTION, add_generation_prompt=True)
    assert text == "<bos><|im_start|>user\nHi<eos>\n<|im_start|>assistant\n"
    ids = found.encode(text)
    assert ids[0] == found.tokenizer.bos_token_id and found.tokenizer.eos_token_id in ids
    assert found.stop_ids == {1, 106}  # the model's own, which hold <eos>
    assert "<eos> ends each message" in given_template.told(found)
    assert "<|im_start|> is plain text" in given_template.told(found)


def test_a_gguf_file_without_one_is_proven_before_it_gets_one(base: Path, tmp_path: Path) -> None:
    exporter.write(base, tmp_path / "base.gguf", ignore)
    order = Order(model=str(tmp_path / "base.gguf"), chat_template="chatml")
    told: list[Event] = []
    folder = bring_in(Cache(tmp_path / "cache", told.append), order.request().source)
    assert ModelTokenizer(folder.path).template is not None
    gates = {event.name: event for event in told if isinstance(event, GateResult)}
    assert gates["source.stop_ids"].passed and gates["source.mean_kld_nats"].passed


def test_a_file_takes_the_place_of_the_models_own_template(tmp_path: Path) -> None:
    model = tiny.make_small(tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": CHATML}))
    (tmp_path / "own.jinja").write_text(OWN)
    found = given(model, tmp_path / "out", str(tmp_path / "own.jinja"))
    assert found.chat_template.source == OWN
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert ModelTokenizer(model).chat_template.source == CHATML


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{% for m in messages %}", ConfigError, "is not a chat template"),
        ("{# messages #}{{ 'x' * 10**9 }}{% for i in range(10**9) %}x{% endfor %}", CorruptError, "was stopped"),
        ("x" * (1 << 18), CorruptError, "its program is longer"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", ConfigError, "no special token after an answer"),
        ("{% for m in messages|reverse %}{{ m.content }}<|im_end|>{% endfor %}", ConfigError, "own prompt"),
        (None, ConfigError, "cannot be read"),
    ],
)  # fmt: skip
def test_a_template_that_does_not_do_is_refused_before_anything_is_tuned(
    base: Path, tmp_path: Path, text: str | None, error: type[Exception], words: str
) -> None:
    file = tmp_path / "own.jinja"
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=words):
        given(base, tmp_path / "out", str(file))


def test_of_several_templates_the_default_one_is_used(tmp_path: Path) -> None:
    model = tiny.make(tmp_path / "model", tokens=vocabularies.for_transformers())
    settings = json.loads((model / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": OWN}, {"name": "default", "template": CHATML}]
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": named}))
    assert tokenizer_files.template_names(model) == ["default", "tool_use"]
    assert ModelTokenizer(model).chat_template.source == CHATML
    found = tokenizer_files.chat_template(model)
    assert found is not None and found.source == CHATML
    settings["chat_template"] = named[:1]
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert ModelTokenizer(model).template is None and tokenizer_files.chat_template(model) is None


def test_the_exported_file_has_the_template_that_was_given(shell: Any, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    loose = [f"budget.{gate}" for gate in ("answer_top1_agreement=0.7", "greedy_agreement=0.2")]
    done = shell(
        "export", base, "--formats", "gguf", "--chat-template", "chatml", "--out", out, "--cache-dir", tmp_path / "cache",
        "--threads", "1", "--json", *(word for value in loose for word in ("--set", value)),
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert list(told["files"]) == ["gguf"], done.stderr
    failed = [gate["name"] for gate in told["gates"] if not gate["passed"]]
    assert not [name for name in failed if "template" in name or "stop" in name or "token" in name]
    metadata = read_gguf(out / "model.gguf").metadata
    assert "<|im_start|>" in str(metadata["tokenizer.chat_template"])
    assert "The model gets the chat template ChatML" in done.stderr
