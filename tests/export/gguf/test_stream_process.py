"""The child process writes the file of `stream`, tells the same events and errors, and leaves nothing when it ends early."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import makers
import numpy as np
import psutil
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from edgekit.base.errors import ConfigError, EdgekitError, MissingPartError, StageError
from edgekit.base.events import Event, Progress
from edgekit.containers.safetensors import SINGLE
from edgekit.export.gguf import stream, stream_process
from edgekit.targets.target import GgufExport

Q4 = GgufExport(format="gguf", type="Q4_0")
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose rope needs factors of its own."""
    return tiny.make(tmp_path_factory.mktemp("model") / "model", "llama3")


def run(code: str, *arguments: object) -> str:
    """What Python code prints in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


STREAM = """
import sys
from pathlib import Path
from edgekit.export.gguf.stream_process import stream
from edgekit.targets.target import GgufExport
stream(Path(sys.argv[1]), Path(sys.argv[2]), GgufExport(format="gguf", type="Q4_0"))
print({"torch", "transformers", "numpy", "llama_cpp"} & {*sys.modules})
"""
ORDERED = """
import importlib.util, os, sys
from edgekit.export.gguf import stream_process
sys.argv[1:] = [str(os.dup(1)), sys.argv[1]]
stream_process.main()
print(importlib.util.find_spec("torch") is not None)
"""


def test_the_file_is_that_of_a_process_with_torch_and_the_caller_loads_nothing(
    model: Path, tmp_path: Path
) -> None:
    stream.stream(model, tmp_path / "expected.gguf", Q4)
    assert run(STREAM, model, tmp_path / "out.gguf") == "set()\n"
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


@pytest.mark.parametrize("adapter", [None, "adapter"])
def test_the_child_finds_torch_for_an_adapter_only(adapter: str | None, tmp_path: Path) -> None:
    order = {
        "call": "peak_memory",
        "config": {},
        "threads": 1,
        "options": Q4.model_dump(),
        "adapter": adapter,
    }
    (tmp_path / stream_process.ORDER).write_text(json.dumps(order))
    assert run(ORDERED, tmp_path).splitlines()[-1] == str(adapter is not None)


MEASURED = """
import json, sys
from pathlib import Path
from edgekit.base.memory import PeakRss
from edgekit.export.gguf.stream_process import peak_memory, stream
from edgekit.targets.target import GgufExport
folder, out, options = Path(sys.argv[1]), Path(sys.argv[2]), GgufExport(format="gguf", type="Q4_0")
with PeakRss(0.005) as peak:
    stream(folder, out, options)
print(json.dumps([peak.peak_mib, peak_memory(json.loads((folder / "config.json").read_text()), options) / 2**20]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", list(makers.MODELS))
def test_a_real_vocabulary_needs_no_more_memory_than_was_said(name: str, tmp_path: Path) -> None:
    folder = makers.make(tmp_path / "model", name)
    measured, said = json.loads(run(MEASURED, folder, tmp_path / "out.gguf"))
    assert measured <= said
    stream.stream(folder, tmp_path / "expected.gguf", Q4)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def told(events: list[Event]) -> list[Event]:
    """The events without their times."""
    return [replace(event, time=0.0) for event in events]


def test_events_and_the_importance_matrix_pass_between_the_processes(model: Path, tmp_path: Path) -> None:
    wanted = GgufExport(format="gguf", type="Q4_K_M")  # the rows of a tiny model do not fit, which is told
    tensors = stream.read_model(model).tensors
    imatrix = {t.name: np.linspace(0, 9, t.shape[1]) for t in tensors if "ffn_up" in t.name}
    here: list[Event] = []
    there: list[Event] = []
    stream.stream(model, tmp_path / "here.gguf", wanted, imatrix=imatrix, emit=here.append)  # type: ignore[arg-type]
    stream_process.stream(model, tmp_path / "there.gguf", wanted, imatrix=imatrix, emit=there.append)  # type: ignore[arg-type]
    assert (tmp_path / "there.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()
    stream.stream(model, tmp_path / "plain.gguf", wanted)
    assert (tmp_path / "there.gguf").read_bytes() != (tmp_path / "plain.gguf").read_bytes()
    assert told(there) == told(here)
    assert {type(event).__name__ for event in there} == {"Alert", "Progress"}


def altered(model: Path, to: Path, change: Callable[[Path], None]) -> Path:
    """A copy of the model folder in which `change` has replaced a file."""
    to.mkdir()
    for file in model.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    change(to)
    return to


def with_nan(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    tensors[NORM][0] = torch.nan
    save_file(tensors, folder / SINGLE)


def with_relu(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))


FAILURES = {
    "CorruptError": (with_nan, {}),
    "UnsupportedError": (with_relu, {}),
    "StageError": (lambda folder: None, {"imatrix": {"blk.0.attn_q.weight": np.ones(5, np.float32)}}),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_an_error_is_the_same_as_in_one_process(kind: str, model: Path, tmp_path: Path) -> None:
    change, more = FAILURES[kind]
    folder, out = altered(model, tmp_path / "altered", change), tmp_path / "out.gguf"
    found = []
    for way in (stream.stream, stream_process.stream):
        with pytest.raises(EdgekitError) as caught:
            way(folder, out, Q4, **more)  # type: ignore[operator]
        assert not out.exists()
        found.append((type(caught.value).__name__, caught.value.message, caught.value.hint))
    assert found[0] == found[1]
    assert found[0][0] == kind


def test_all_faults_of_an_adapter_arrive(model: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    save_file({"base_model.model.one": torch.ones(1), "base_model.model.two": torch.ones(1)}, tmp_path / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(ConfigError, match="does not fit") as caught:
        stream_process.stream(model, tmp_path / "out.gguf", Q4, adapter=tmp_path)
    assert caught.value.faults == [f"base_model.model.{name}: the base has no such tensor" for name in ("one", "two")]  # fmt: skip


def child_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the child do something else when it converts its ninth piece of the tensors."""
    (folder / "planted.py").write_text(
        f"""
import os, signal
from edgekit.export.gguf import stream, stream_process
convert, pieces = stream._convert, []
def planted(*arguments):
    pieces.append(arguments)
    if len(pieces) == 9:
        {does}
    return convert(*arguments)
stream._convert = planted
stream_process.main()
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(stream_process, "MODULE", "planted")


ENDS = {
    "os.write(2, b'GGML_ASSERT(planted)'); os.kill(os.getpid(), signal.SIGABRT)": r"\(SIGABRT: GGML_ASSERT\(planted\)\)",
    "os.kill(os.getpid(), signal.SIGKILL)": r"\(SIGKILL\)",
    "raise OSError(28, 'No space left on device')": r"\(OSError: \[Errno 28\] No space left on device\)",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_child_that_ends_in_the_middle_leaves_no_file_and_says_how(
    end: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that(end, tmp_path, monkeypatch)
    out = tmp_path / "out.gguf"
    with pytest.raises(StageError, match=ENDS[end]) as caught:
        stream_process.stream(model, out, Q4)
    assert not out.exists()
    assert "No file was written." in caught.value.message and caught.value.hint


def test_a_missing_package_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child_that("raise ModuleNotFoundError(name='llama_cpp')", tmp_path, monkeypatch)
    with pytest.raises(MissingPartError, match="llama_cpp"):
        stream_process.stream(model, tmp_path / "out.gguf", Q4)


def test_an_interrupt_ends_the_child_and_leaves_no_file(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_that("import time; time.sleep(60)", tmp_path, monkeypatch)
    out, children = tmp_path / "out.gguf", []
    others = psutil.Process().children()

    def interrupt(event: Event) -> None:
        if isinstance(event, Progress):
            assert out.exists()
            children.extend(child for child in psutil.Process().children() if child not in others)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_process.stream(model, out, Q4, threads=1, emit=interrupt)
    assert not out.exists()
    assert children and not any(child.is_running() for child in children)
