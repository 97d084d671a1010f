"""The bare runtimes: what llama-cpp-python and onnxruntime-genai make of text without edgekit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import vocabularies
from fake_runtime import CHATML, FakeRuntime
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from edgekit.base.events import ignore
from edgekit.device.isolated import open_isolated
from edgekit.export.gguf import write as gguf
from edgekit.export.onnx import export as onnx
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof import bare, text_path
from edgekit.proof.facts import ReferenceFacts
from edgekit.registry import BareText, ExportContext
from edgekit.runtimes import llamacpp, onnxruntime
from edgekit.targets.target import OnnxExport

ROWS = [[{"role": "user", "content": "Wake me at 07:30."}]]
LONG = "-" * 40
FAKE = FakeRuntime()


@dataclass(frozen=True)
class Files:
    """A tiny model that normalises to NFC and has a token of 40 bytes, and its two exports."""

    model: Path
    gguf: Path
    onnx: Path

    def facts(self) -> ReferenceFacts:
        """The reference's text path, with a row of a task."""
        return ReferenceFacts.of(ModelTokenizer(self.model), ["7:30"], ROWS)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("bare")
    tokenizer = vocabularies.byte_level("qwen2")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([LONG])
    tokens = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=CHATML
    )
    made = Files(tiny.make(folder / "model", "qwen2", tokens=tokens), folder / "model.gguf", folder / "onnx")
    gguf.write(made.model, made.gguf, ignore)
    options = OnnxExport(format="onnx", precision="fp32")
    onnx.export(made.model, made.onnx, options, ExportContext(made.model), ignore)
    return made


def compared(runtime: Any, facts: ReferenceFacts) -> bare.BareResult:
    found = bare.compare(runtime, facts)
    assert found is not None
    return found


def causes_of(found: bare.BareResult, step: str, text: str) -> list[tuple[str, ...]]:
    return [one.causes for one in found.differences if one.step == step and one.text == text]


def test_llama_cpp_python_needs_nfc_and_leaves_long_tokens_out(files: Files) -> None:
    found = compared(llamacpp.open_model(files.gguf, threads=1), files.facts())
    assert causes_of(found, "encode", "e\u0301") == [("not_nfc",)]
    assert causes_of(found, "decode", LONG) == [("long_tokens",)]
    assert causes_of(found, "encode", "hello") == []
    assert set(found.causes()) <= {"not_nfc", "long_tokens", "not_utf8", "control_tokens"}
    gate = found.gate("gguf", "export.gguf")
    assert gate.passed and gate.value == 1.0 and gate.name == "gguf.bare_runtime"
    assert "differ without edgekit (" in gate.detail


def test_onnxruntime_genai_needs_nfc_and_ends_texts_at_nul(files: Files) -> None:
    found = compared(onnxruntime.open_model(files.onnx, threads=1), files.facts())
    assert causes_of(found, "encode", "e\u0301") == [("not_nfc",)]
    assert causes_of(found, "encode", "a\0b") == [("nul",)]
    assert causes_of(found, "decode", "a\0b") == [("nul",)]
    assert [one.causes for one in found.differences if one.step == "render"] == [("nul",), ("nul",)]
    assert bare.OTHER not in found.causes()
    assert found.gate("onnx", "export.onnx").passed


def test_a_child_process_finds_the_same(files: Files) -> None:
    here = compared(onnxruntime.open_model(files.onnx, threads=1), files.facts())
    runtime = open_isolated("onnxruntime", files.onnx, threads=1)
    try:
        assert compared(runtime, files.facts()) == here
    finally:
        runtime.close()


def test_a_runtime_without_a_bare_text_path_is_not_compared(files: Files) -> None:
    assert bare.compare(FakeRuntime(), files.facts()) is None
    runtime = open_isolated("torch", files.model, threads=1)
    try:
        assert bare.compare(runtime, files.facts()) is None
    finally:
        runtime.close()


def test_the_manifests_entry_tells_which_texts_and_what_to_do(files: Files) -> None:
    facts = files.facts()
    entry = compared(onnxruntime.open_model(files.onnx, threads=1), facts).to_json()
    assert json.loads(json.dumps(entry)) == entry
    assert entry["texts"] == len(facts.texts) and 0 < entry["differ"] < entry["texts"] / 4
    assert {cause for example in entry["examples"] for cause in example["causes"]} == set(entry["causes"])
    assert "Unicode form NFC: Normalise every text first" in entry["advice"]


def test_a_template_that_onnxruntime_genai_cannot_render_fails(files: Files, tmp_path: Path) -> None:
    """Its template engine has no filter `upper`; edgekit and transformers render it."""
    copy = shutil.copytree(files.onnx, tmp_path / "onnx")
    template = CHATML.replace("{{ message['role'] }}", "{{ message['role'] | upper }}")
    (copy / "chat_template.jinja").write_text(template)
    shutil.copytree(files.model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    facts = ReferenceFacts.of(ModelTokenizer(tmp_path / "model"), [], ROWS)
    runtime = onnxruntime.open_model(copy, threads=1)
    assert [
        gate.detail for gate in text_path.identity(runtime, facts, "onnx", "s")[0] if not gate.passed
    ] == []
    gate = compared(runtime, facts).gate("onnx", "export.onnx")
    assert not gate.passed and gate.value < 1.0
    assert "Wake me at 07:30." in gate.detail and "onnxruntime-genai refuses" in gate.detail


@dataclass
class Bare:
    """The text path of another runtime, with one fault."""

    fault: str

    def encode(self, text: str) -> list[int]:
        return FAKE.encode(text.replace("  ", " ") if self.fault == "joins spaces" else text)

    def decode(self, ids: Sequence[int]) -> str:
        return FAKE.decode(ids)[1 if self.fault == "cuts" else 0 :]

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        shown = messages[-1:] if self.fault == "forgets" else messages
        return FAKE.chat_template.render(shown, add_generation_prompt=True)


@dataclass
class WithBare(FakeRuntime):
    """The fake runtime with that text path beside its own, which is right."""

    fault: str = ""

    def bare(self) -> BareText:
        return Bare(self.fault)


@pytest.mark.parametrize(
    ("fault", "passes"), [("", True), ("joins spaces", False), ("cuts", False), ("forgets", False)]
)
def test_another_reading_of_ordinary_text_fails(fault: str, passes: bool) -> None:
    facts = ReferenceFacts.of(FAKE, ["two  spaces"], [])
    found = compared(WithBare(fault=fault), facts)
    assert found.gate("gguf", "s").passed == passes
    assert bool(found.differences) != passes


def test_another_reading_of_a_text_nobody_writes_is_told_and_passes() -> None:
    facts = ReferenceFacts.of(FAKE, [], [])
    assert not any("  " in text for text in facts.ordinary if "moving_average" not in text)
    facts = ReferenceFacts(facts.texts, facts.ids, facts.decoded, facts.template, facts.stop_ids, {})
    found = compared(WithBare(fault="joins spaces"), facts)
    assert found.causes().get(bare.OTHER) and found.gate("gguf", "s").passed
