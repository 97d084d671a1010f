"""llama.cpp's command-line tools, as they score and quantize a GGUF file: for benchmarks beside edgekit."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.base.artifacts import written_whole
from edgekit.registry import Runtime

NAMES = ("llama-imatrix", "llama-perplexity", "llama-quantize")
SPEED = "llama-bench"
PROMPT, DECODED = 128, 64  # tokens that a speed is measured on
MAGIC, LEVELS, RANGE_NATS = b"_logits_", 65535, 16.0
MEAN_KLD = re.compile(r"^Mean +KLD: +(\S+) ± +(\S+)", re.MULTILINE)
RESOLUTION = 1e-6  # nats, the last digit of a mean; that of equal models may be below 0
SAME_TOP = re.compile(r"^Same top p: +(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Score:
    """How far a file is from the float file on one text: the mean divergence in nats and its standard error."""

    mean_kld: float
    error: float
    same_top: float
    """The share of positions with the same most likely token."""


@dataclass(frozen=True)
class Tools:
    """The folder with llama.cpp's binaries, and how they run. Each stops the benchmark when it fails."""

    folder: Path
    threads: int
    context: int

    def importance(self, model: Path, text: Path, out: Path) -> None:
        """The importance matrix of the float file `model` on all of a text, whose control tokens are read as such."""
        with written_whole(out) as staging:
            run = ("-t", self.threads, "-c", self.context, "--parse-special", "--no-escape", "--no-ppl")
            self._run("llama-imatrix", "-m", model, "-f", text, *run, *_to(staging))

    def combined(self, matrices: Sequence[Path], out: Path) -> None:
        """One importance matrix of the texts of several."""
        with written_whole(out) as staging:
            given = [part for matrix in matrices for part in ("--in-file", matrix)]
            self._run("llama-imatrix", "-m", "none", *given, *_to(staging))

    def quantize(self, model: Path, type: str, out: Path, matrix: Path | None) -> None:
        """The float file `model` as llama-quantize rounds it to a type."""
        with written_whole(out) as staging:
            weights = ["--imatrix", matrix] if matrix else []
            self._run("llama-quantize", *weights, model, staging, type, self.threads)

    def score(self, file: Path, base: Path) -> Score:
        """The divergence of a file from the log-probabilities that `base` wrote."""
        said = self._run(
            "llama-perplexity", "-m", file, "-t", self.threads, "-c", self.context,
            "--kl-divergence", "--kl-divergence-base", base,
        )  # fmt: skip
        kld, top = MEAN_KLD.search(said), SAME_TOP.search(said)
        if not (kld and top):
            sys.exit(f"llama-perplexity gave no score for {file}:\n{said[-2000:]}")
        mean, error = (float(value) for value in kld.groups())
        mean = math.inf if math.isnan(mean) else max(mean, RESOLUTION)
        return Score(mean, error, float(top[1]) / 100)

    def speed(self, file: Path, threads: int) -> tuple[float, float]:
        """Tokens a second of one run of a file: of a prompt, and of decoding."""
        said = self._run(
            "llama-bench", "-m", file, "-t", threads, "-p", PROMPT, "-n", DECODED, "-r", 1, "-o", "json"
        )
        prompt, decoded = json.loads(said[said.index("[\n") :])
        return float(prompt["avg_ts"]), float(decoded["avg_ts"])

    def _run(self, tool: str, *arguments: object) -> str:
        command = list(map(str, (self.folder / tool, *arguments)))
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        said = done.stdout.decode("utf-8", "replace")
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{said[-2000:]}")
        return said


def write_base(runtime: Runtime, chunks: Sequence[Sequence[int]], out: Path) -> None:
    """Write the log-probabilities that `Tools.score` compares with: those in the second half of each chunk of token ids.

    llama-perplexity writes such a file too, but it reads the control tokens of a text as plain characters, so no text of
    it is a conversation. A file that is scored reads the ids that are stored here. The layout is that of `log_softmax`
    in tools/perplexity/perplexity.cpp: for each position two float32, the step and the least log-probability, then a
    uint16 for each token. 25 MB a chunk of 512 tokens for a vocabulary of 49,152.
    """
    context = len(chunks[0])
    with written_whole(out) as staging, staging.open("wb") as file:
        file.write(MAGIC + np.array([context, runtime.vocab_size, len(chunks)], "<i4").tobytes())
        file.write(np.array(chunks, "<i4").tobytes())
        for ids in chunks:
            file.write(_steps(runtime.logits(ids, context // 2)[:-1]).tobytes())


def _steps(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Log-probabilities `(T, 4 + V)` in steps, an even number of columns; what is 16 nats below the largest is cut."""
    largest = logits.max(1, keepdims=True)
    least = np.maximum(logits.min(1, keepdims=True), largest - np.float32(RANGE_NATS))
    step = (largest - least) / np.float32(LEVELS)
    total = np.log(np.exp((logits - largest).astype(np.float64)).sum(1, keepdims=True)).astype(np.float32)
    rows = np.zeros((len(logits), 4 + logits.shape[1] + logits.shape[1] % 2), np.uint16)
    rows[:, :4] = np.hstack([step, least - largest - total]).astype("<f4").view(np.uint16)
    rows[:, 4 : 4 + logits.shape[1]] = np.rint(np.maximum(logits - least, 0) / step)
    return rows


def _to(out: Path) -> tuple[object, ...]:
    return "--output-format", "gguf", "-o", out
