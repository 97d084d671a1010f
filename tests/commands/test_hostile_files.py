"""Files from strangers on the command line: exit 5, one sentence, one JSON document, and nothing of the runtime's own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from faults import hostile, hostile_onnx, plant

import edgekit
from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import CorruptError

NATIVE = ("Traceback", "terminate called", "libllama", "libggml", "#0 ", "Aborted", "core dumped")
ABORTS = "billions of layers"  # where no rule refuses it, llama.cpp ends its process by an assertion
FILES = {  # one for each check that `verify` makes before a runtime opens the file; tests/faults has the cases of each
    "a broken rule": hostile.GGUF["bos id outside the vocabulary"][0],
    "cut off": lambda file: os.truncate(file, file.stat().st_size - 1000),
    "a template that never ends": plant.template(hostile.ENDLESS),
}
FOLDERS = {
    "a broken rule": hostile_onnx.ONNX["more layers than the graph"][0],
    "a template that never ends": lambda folder: (folder / "chat_template.jinja").write_text(hostile.ENDLESS),
}


def one_sentence(done: Any) -> None:
    """The process ended with 5, and said so in one JSON document and one sentence."""
    assert done.returncode == 5, (done.returncode, done.stderr)
    found = json.loads(done.stdout)
    assert found["code"] == 5 and "\n" not in found["message"] and found["hint"]
    assert found["message"] in done.stderr
    assert not any(word in done.stdout + done.stderr for word in NATIVE), done.stderr


def verified(shell: Any, path: Path, model: Path, tmp_path: Path) -> Any:
    return shell("verify", path, "--reference", model, "--cache-dir", tmp_path / "cache", "--quick", "--json")


@pytest.mark.parametrize("case", FILES)
def test_verify_of_a_hostile_file(
    case: str, small_gguf: Path, small_model: Path, shell: Any, tmp_path: Path
) -> None:
    file = Path(shutil.copyfile(small_gguf, tmp_path / "model.gguf"))
    FILES[case](file)
    one_sentence(verified(shell, file, small_model, tmp_path))


@pytest.mark.parametrize("case", FOLDERS)
def test_verify_of_a_hostile_folder(
    case: str, small_onnx: Path, small_model: Path, shell: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_onnx, tmp_path / "onnx"))
    FOLDERS[case](folder)
    one_sentence(verified(shell, folder, small_model, tmp_path))


@pytest.mark.parametrize("what", hostile.TEMPLATES)
def test_an_app_is_told_of_a_template_without_end(what: str, small_gguf: Path, tmp_path: Path) -> None:
    file = Path(shutil.copyfile(small_gguf, tmp_path / "model.gguf"))
    plant.template(hostile.TEMPLATES[what])(file)
    with edgekit.load(file, threads=1) as model, pytest.raises(CorruptError, match="template was stopped"):
        model.generate("Hello")


@pytest.mark.parametrize(
    "command", [["eval", "FILE", "--limit", "1"], ["drift", "capture", "FILE", "--text", "text"]], ids=lambda it: it[0]
)  # fmt: skip
def test_other_verbs_on_a_file_that_aborts_its_runtime(
    command: list[str], small_gguf: Path, shell: Any, tmp_path: Path, without_rules: dict[str, str]
) -> None:
    """`eval` and `drift` open a file as `verify` does, in a child process."""
    file = Path(shutil.copyfile(small_gguf, tmp_path / "model.gguf"))
    hostile.GGUF[ABORTS][0](file)
    (tmp_path / "text").write_text("words " * 99)
    typed = [file if word == "FILE" else word for word in command]
    done = shell(*typed, "--json", env=without_rules, cwd=tmp_path)
    one_sentence(done)
    assert "llama.cpp crashed while opening it (SIGABRT" in done.stderr


def test_a_hostile_file_is_not_profiled(small_gguf: Path, shell: Any, tmp_path: Path) -> None:
    file = Path(shutil.copyfile(small_gguf, tmp_path / "model.gguf"))
    hostile.GGUF[ABORTS][0](file)
    done = shell("profile", file, "--json")
    one_sentence(done)
    assert "(sizes)" in done.stderr


@pytest.fixture
def without_rules(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose rules are taken out, so that the runtime meets what they refuse."""
    environment = dict(os.environ)
    hostile.take_out_rules(tmp_path, environment.__setitem__)
    return environment


def test_a_bundle_whose_model_aborts_the_runtime_is_not_imported(
    small_gguf: Path, shell: Any, tmp_path: Path, without_rules: dict[str, str]
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    shutil.copyfile(small_gguf, bundle / "model.gguf")
    hostile.GGUF[ABORTS][0](bundle / "model.gguf")
    golden = {
        "schema": "edgekit.golden/1",
        "formats": {"gguf": {"max_tokens": 4, "texts": [], "answers": []}},
    }
    (bundle / "golden.json").write_text(json.dumps(golden))
    files = [
        {"path": file.name, "bytes": file.stat().st_size, "sha256": sha256_file(file)}
        for file in sorted(bundle.iterdir())
    ]
    manifest = {"schema": "edgekit.bundle/1", "name": "stranger", "target": "tiny", "verdict": "pass", "threads": 1,
                "formats": {"gguf": {"path": "model.gguf", "runtime": "llama.cpp"}}, "files": files}  # fmt: skip
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = shell("releases", "import", bundle, "--state", tmp_path / "state", "--json", env=without_rules)
    one_sentence(done)
    assert "its process ended unexpectedly (SIGABRT" in done.stderr and "nothing was imported" in done.stderr
    assert not list((tmp_path / "state" / "releases" / "versions").iterdir())
