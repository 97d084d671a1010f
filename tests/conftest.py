"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from edgekit.base.memory import give_back, keep_for_good

if TYPE_CHECKING:
    import field_state

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
# Collections take a third of the time in which pytest imports and rewrites these tests. Each module of tests begins with one.
gc.set_threshold(50_000)
# Workers that each compute on every core wait for one another most of the time.
THREADS = max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

TINY_TARGET = """
schema = 1
name = "tiny"
[tune]
epochs = 1
rank = 4
[quantize]
calibration_texts = 4
[[export]]
format = "gguf"
type = "Q8_0"
[[export]]
format = "onnx"
precision = "int8"
[profile]
threads = [1]
repeats = 3
prompt_tokens = 16
generate_tokens = 8
[evaluate]
robust_rows = 2
robust_families = ["typos"]
[budget]
mean_kld_nats = 0.05
top1_agreement = 0.8
answer_top1_agreement = 0.8 # a random model is never sure of a token
greedy_agreement = 0.3
accuracy_drop_points = 100.0
accuracy_gain_points = -100.0 # nor does it learn the task in six steps
"""

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> None:
    """Collections do not look at what earlier modules have imported."""
    give_back()
    keep_for_good()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded Llama of three layers with the sample model's tokenizer, as a Hugging Face folder."""
    import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded Llama with a tokenizer of 478 tokens, as a Hugging Face folder."""
    import tiny

    return tiny.make_small(tmp_path_factory.mktemp("small") / "llama")


@pytest.fixture(scope="session")
def small_gguf(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a Q8_0 file."""
    import tiny

    from edgekit.base.events import ignore
    from edgekit.export.gguf import write as gguf_export
    from edgekit.export.gguf.quantize import quantize

    folder = tmp_path_factory.mktemp("file")
    gguf_export.write(small_model, folder / "float.gguf", ignore)
    quantize(folder / "float.gguf", folder / "model.gguf", tiny.gguf_options("Q8_0"), threads=1)
    return folder / "model.gguf"


@pytest.fixture(scope="session")
def small_onnx(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as an onnxruntime-genai folder of 8 bits."""
    from edgekit.base.events import ignore
    from edgekit.export.onnx import export as onnx_export
    from edgekit.registry import ExportContext
    from edgekit.targets.target import OnnxExport

    out = tmp_path_factory.mktemp("folder") / "onnx"
    options = OnnxExport(format="onnx", precision="int8")
    onnx_export.export(small_model, out, options, ExportContext(small_model), ignore)
    return out


@dataclass(frozen=True)
class TinyBuild:
    """A whole build of the tiny model: where things are, and what to type to repeat it."""

    folder: Path

    @property
    def model(self) -> Path:
        """The model that was built, as a Hugging Face folder."""
        return self.folder / "model"

    @property
    def bundle(self) -> Path:
        """The bundle that was built."""
        return self.folder / "bundle"

    @property
    def log(self) -> Path:
        """Which modules each stage declares and asks for: see `recorded.py`."""
        return self.folder / "modules.json"

    @property
    def arguments(self) -> list[str]:
        """The command line of the build, with paths of its own."""
        return self.command(self.bundle, self.folder / "cache")

    def cache_copy(self, folder: Path) -> Path:
        """A copy of the build's cache, for a command that leaves other results or another record there."""
        return Path(shutil.copytree(self.folder / "cache", folder / "cache", symlinks=True))

    def command(self, out: Path, cache: Path) -> list[str]:
        """The same build to another place."""
        target, data = str(self.folder / "tiny.toml"), str(self.folder / "data")
        places = ["--out", str(out), "--cache-dir", str(cache), "--threads", "1"]
        return ["build", "--model", str(self.model), "--target", target, "--data", data, *places]


@pytest.fixture(scope="session")
def fresh_shell() -> Shell:
    """Run `edgekit ARGS...` in a process of its own, as a person would."""

    def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgekit.cli", *map(str, arguments)]
        return subprocess.run(command, check=False, **{"capture_output": True, "text": True, **options})

    return run


@pytest.fixture(scope="session")
def shell(fresh_shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """The same in a fork of a process that has imported the large libraries (`warm.py`), unless there are `options`."""
    files = [tmp_path_factory.mktemp("shell") / name for name in ("out", "err")]
    command = [sys.executable, str(Path(__file__).with_name("warm.py"))]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as warm:
        assert warm.stdin and warm.stdout
        orders, answers = warm.stdin, warm.stdout

        def run(*arguments: Any, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
            if options:
                return fresh_shell(*arguments, cwd=cwd, **options)
            for file in files:
                file.write_text("")
            order = {"arguments": [*map(str, arguments)], "cwd": str(cwd or Path.cwd())}
            orders.write(json.dumps(order | {"out": str(files[0]), "err": str(files[1])}) + "\n")
            orders.flush()
            code = int(answers.readline())
            return subprocess.CompletedProcess(
                order["arguments"], code, *(file.read_text("utf-8") for file in files)
            )

        yield run
        orders.close()


@pytest.fixture(scope="session")
def tiny_build(tmp_path_factory: pytest.TempPathFactory) -> TinyBuild:
    """One real build from rows to bundle on a tiny model with a small tokenizer, in both formats.

    The first worker that asks for it makes it, and each worker gets a copy of its own.
    """
    base = tmp_path_factory.getbasetemp()
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny-build"
    with FileLock(f"{made}.lock"):
        if not (made / "bundle" / "manifest.json").is_file():
            shutil.rmtree(made, ignore_errors=True)
            make_tiny_build(TinyBuild(made))
    return TinyBuild(Path(shutil.copytree(made, tmp_path_factory.mktemp("build") / "tiny", symlinks=True)))


def make_tiny_build(build: TinyBuild) -> None:
    """Make the model, the data and the target in the build's folder, and build them."""
    import tiny

    from edgekit.data import demo

    build.folder.mkdir()
    tiny.make_small(build.model)
    demo.write(build.folder / "data", 48, 16, 12)
    (build.folder / "tiny.toml").write_text(TINY_TARGET)
    command = [sys.executable, Path(__file__).with_name("recorded.py"), build.log, *build.arguments]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> field_state.BadHour:
    """A state folder after a bad hour."""
    from field_state import FAILING, HOT, SLOW, BadHour, bad_hour

    state, now = tmp_path_factory.mktemp("hour") / "state", time.time()
    return BadHour(state, now, *bad_hour(state, now, rules=(SLOW, FAILING, HOT), hot=True))


@pytest.fixture
def hour_copy(hour: field_state.BadHour, tmp_path: Path) -> Path:
    """A copy of its folder, for changing."""
    return Path(shutil.copytree(hour.state, tmp_path / "state"))
