"""A good model whose tokenizer has a token without an embedding works everywhere, and the token's text stays text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import edgekit
from edgekit.base.cache import Cache
from edgekit.base.errors import ConfigError
from edgekit.base.events import Alert, Event, ignore
from edgekit.containers.gguf_content import check_gguf
from edgekit.data.rows import Row
from edgekit.device.prompt import encode_prompt
from edgekit.export.gguf import write as gguf_export
from edgekit.field.serving.constrain import Constraints, of_choices
from edgekit.models import tokenizer_files
from edgekit.models.folder_check import check_folder
from edgekit.models.onnx_folder import check_onnx_folder
from edgekit.models.source import resolve
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof.source import bring_in
from edgekit.runtimes.torch import open_model
from edgekit.tuning.encode import encode_rows

ROWS = 478
TEXT = f"Look: {tiny.UNUSED}!"
USER = [{"role": "user", "content": TEXT}]


@pytest.fixture(scope="module")
def folder(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(small_model, tmp_path_factory.mktemp("unused") / "model")
    return tiny.add_unused_token(Path(copy))


@pytest.fixture
def onnx(small_onnx: Path, tmp_path: Path) -> Path:
    return tiny.add_unused_token(Path(shutil.copytree(small_onnx, tmp_path / "onnx")))


def test_the_folder_is_sound_and_the_token_is_named(folder: Path, tmp_path: Path) -> None:
    check_folder(folder)
    events: list[Event] = []
    for _ in range(2):  # also when the stage is taken from the cache
        events.clear()
        bring_in(Cache(tmp_path / "cache", events.append), resolve(str(folder)))
        (told,) = (event for event in events if isinstance(event, Alert))
        assert told.level == "warning" and f"'{tiny.UNUSED}' ({ROWS})" in told.message
    assert tokenizer_files.warning(folder.parent) == ""


def test_the_reference_reads_it_as_text(folder: Path) -> None:
    tokenizer = ModelTokenizer(folder)
    ids = tokenizer.encode(TEXT)
    assert max(ids) < ROWS and tokenizer.decode(ids) == TEXT
    assert tokenizer.vocab_size == ROWS and tiny.UNUSED not in tokenizer.added_tokens


def test_torch_computes_with_it_and_refuses_its_id(folder: Path) -> None:
    model = open_model(folder, threads=1, context=128)
    try:
        prompt = encode_prompt(model, USER)
        assert len(list(model.generate(prompt, 2, ignore_stop=True))) == 2
        for ask in (
            lambda: model.logits([1, ROWS]),
            lambda: list(model.generate([1, ROWS], 2)),
            lambda: model.generate_batch([[1], [1, ROWS]], 2),
        ):
            with pytest.raises(ConfigError, match=f"Token id {ROWS} is outside the vocabulary"):
                ask()
    finally:
        model.close()


def test_rows_with_its_text_can_be_learned(folder: Path) -> None:
    tokenizer = ModelTokenizer(folder)
    row = Row("1", (*USER, {"role": "assistant", "content": TEXT}))
    (encoded,), left_out = encode_rows([row], tokenizer.chat_template, tokenizer, 512)
    assert not left_out and max(encoded.input_ids) < ROWS


def test_a_gguf_file_is_made_without_it(folder: Path, tmp_path: Path) -> None:
    gguf_export.write(folder, tmp_path / "model.gguf", ignore)
    assert len(check_gguf(tmp_path / "model.gguf").metadata["tokenizer.ggml.tokens"]) == ROWS
    with edgekit.load(tmp_path / "model.gguf", threads=1) as model:
        assert model.runtime.encode(TEXT) == ModelTokenizer(folder).encode(TEXT)


def test_an_onnx_folder_with_it_is_sound_and_keeps_it_out_of_prompts(onnx: Path) -> None:
    check_onnx_folder(onnx)
    assert f"'{tiny.UNUSED}' ({ROWS})" in tokenizer_files.warning(onnx)
    with edgekit.load(onnx, threads=1) as model:
        prompt = model.prompt(USER)
        assert max(prompt) < ROWS and tiny.UNUSED in model.runtime.decode(prompt)
        whole = model.runtime.encode(TEXT)  # a raw prompt, which the caller writes whole
        assert ROWS in whole
        with pytest.raises(ConfigError, match="outside the vocabulary"):
            model.runtime.logits(whole)
        with pytest.raises(ConfigError, match="outside the vocabulary"):
            list(model.runtime.generate(whole, 2))


def test_answers_of_an_onnx_folder_with_it_can_be_held_to_a_form(onnx: Path) -> None:
    with edgekit.load(onnx, threads=1) as model:
        process = Constraints(onnx, model.runtime).processor(of_choices(["yes", "no"]))
        logits = np.zeros(ROWS, np.float32)
        process([], logits)
        allowed = np.flatnonzero(np.isfinite(logits))
        assert {model.runtime.decode([int(id_)])[0] for id_ in allowed} == {"y", "n"}


@pytest.mark.parametrize("format", ["folder", "onnx"])
def test_verify_names_it_in_its_result(
    format: str, folder: Path, onnx: Path, shell: Any, tmp_path: Path
) -> None:
    path = folder if format == "folder" else onnx
    options = ["--cache-dir", tmp_path / "cache", "--quick", "--json"]
    done = shell("verify", path, "--reference", folder, *options)
    found = json.loads(done.stdout)
    assert done.returncode in (0, 3), done.stderr  # the gates on a model this small are not what is held here
    assert sum(tiny.UNUSED in text for text in found["warnings"]) == 1
    gates = {gate["name"]: gate["passed"] for gate in found["gates"]}
    assert gates[f"{format}.tokenizer_identity"] and gates[f"{format}.detokenization"]
