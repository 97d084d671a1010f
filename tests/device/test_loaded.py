"""`edgekit.load`: one interface over both formats, and nothing served that is not what was built."""

import json
import shutil
from pathlib import Path

import pytest

import edgekit
from edgekit.base.errors import ConfigError, CorruptError, GateError
from edgekit.models.sampling import Sampling

QUESTION = "close job 4512, thanks"


@pytest.fixture
def copy(tiny_build, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_build.bundle, tmp_path / "bundle"))


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_generate_stream_and_chat_agree(tiny_build, format: str) -> None:
    with edgekit.load(tiny_build.bundle, format) as model:
        answer = model.generate(QUESTION)
        assert "".join(model.stream(QUESTION)) == answer
        assert model.chat([{"role": "user", "content": QUESTION}]) == answer
        system = {"role": "system", "content": "Answer with one JSON command."}
        assert model.chat([system, {"role": "user", "content": QUESTION}]) == answer
        assert model.chat([{**system, "content": "Other."}, {"role": "user", "content": QUESTION}]) != answer
        assert len(model.runtime.encode(model.generate(QUESTION, max_tokens=3))) <= 4


def test_sampling_is_seeded(tiny_build) -> None:
    with edgekit.load(tiny_build.bundle) as model:
        hot = [model.generate(QUESTION, sampling=Sampling(temperature=2.0, seed=seed)) for seed in (1, 1, 2)]
    assert hot[0] == hot[1] != hot[2]


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_a_changed_byte_is_refused(copy: Path, format: str) -> None:
    file = copy / "model.gguf" if format == "gguf" else next((copy / "onnx").glob("*.data"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptError, match="digest differs"):
        edgekit.load(copy, format)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "model.gguf").unlink()
    with pytest.raises(CorruptError, match=r"model\.gguf is missing"):
        edgekit.load(copy)


def test_a_failed_bundle_is_served_only_when_asked(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "verdict": "fail"}))
    with pytest.raises(GateError, match="did not pass"):
        edgekit.load(copy)
    edgekit.load(copy, allow_failed=True).close()


def test_what_is_not_there_is_said(tiny_build, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no bundle"):
        edgekit.load(tmp_path / "nowhere")
    with pytest.raises(CorruptError, match="not an edgekit bundle"):
        edgekit.load(tmp_path)
    with pytest.raises(ConfigError, match="has no format 'tflite'"):
        edgekit.load(tiny_build.bundle, "tflite")
    with edgekit.load(tiny_build.bundle) as model, pytest.raises(ConfigError, match="no message"):
        model.chat([])


def test_a_plain_file_opens_without_a_bundle(tiny_build) -> None:
    with edgekit.load(tiny_build.bundle / "model.gguf") as plain, edgekit.load(tiny_build.bundle) as bundled:
        assert plain.system is None
        system = {"role": "system", "content": bundled.system or ""}
        messages = [system, {"role": "user", "content": QUESTION}]
        assert plain.chat(messages, max_tokens=20) == bundled.chat(messages, max_tokens=20)


def test_verify_finds_one_changed_byte_anywhere(tiny_build, copy: Path, shell) -> None:
    assert shell("verify", tiny_build.bundle).returncode == 0
    for name in ("report.json", "tokenizer/tokenizer.json", "onnx/model.onnx", "samples/base.jsonl"):
        file = copy / name
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        done = shell("verify", copy)
        assert done.returncode == 5 and name in done.stderr
        file.write_bytes(content)
    assert shell("verify", copy).returncode == 0
