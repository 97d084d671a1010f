"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")

TINY_TARGET = """
schema = 1
name = "tiny"
[tune]
epochs = 1
rank = 4
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
[budget]
mean_kld_nats = 0.05
top1_agreement = 0.8
answer_top1_agreement = 0.8 # a random model is never sure of a token
greedy_agreement = 0.3
accuracy_drop_points = 100.0
"""

Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded Llama of three layers with the sample model's tokenizer, as a Hugging Face folder."""
    import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny") / "llama")


@dataclass(frozen=True)
class TinyBuild:
    """A whole build of the tiny model: where things are, and what to type to repeat it."""

    folder: Path
    model: Path

    @property
    def bundle(self) -> Path:
        """The bundle that was built."""
        return self.folder / "bundle"

    @property
    def arguments(self) -> list[str]:
        """The command line of the build, with paths of its own."""
        return self.command(self.bundle, self.folder / "cache")

    def command(self, out: Path, cache: Path) -> list[str]:
        """The same build to another place."""
        target, data = str(self.folder / "tiny.toml"), str(self.folder / "data")
        places = ["--out", str(out), "--cache-dir", str(cache), "--threads", "1"]
        return ["build", "--model", str(self.model), "--target", target, "--data", data, *places]


@pytest.fixture(scope="session")
def shell() -> Shell:
    """Run `edgekit ARGS...` in a process of its own, as a person would."""

    def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgekit.cli", *map(str, arguments)]
        return subprocess.run(command, check=False, **{"capture_output": True, "text": True, **options})

    return run


@pytest.fixture(scope="session")
def tiny_build(tmp_path_factory: pytest.TempPathFactory, shell: Shell) -> TinyBuild:
    """One real build from rows to bundle on a tiny model with a small tokenizer, in both formats."""
    import tiny

    from edgekit.data import demo

    folder = tmp_path_factory.mktemp("build")
    model = tiny.make_small(folder / "model")
    demo.write(folder / "data", 48, 16, 12)
    (folder / "tiny.toml").write_text(TINY_TARGET)
    build = TinyBuild(folder, model)
    done = shell(*build.arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    return build
