"""Speed and memory of an exported artifact: each thread count in a fresh process, median with min and max."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.base.errors import StageError
from edgekit.base.events import Alert, Emit, Measured, Progress, ignore
from edgekit.base.hardware import fingerprint
from edgekit.targets.target import Profile

METRICS = ("ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s")


def profile(
    artifact: Path, runtime: str, options: Profile, *, emit: Emit = ignore, simulated: bool = False
) -> list[dict[str, Any]]:
    """One entry of the report's `profile` for each thread count that this machine has.

    `ttft_ms` is the time to the first token of a prompt of `prompt_tokens`, `decode_tokens_per_s` counts the tokens
    after it. `simulated` marks figures of another machine than the target's. Raises `StageError` when the artifact
    cannot be opened in a process of its own.
    """
    cores = int(fingerprint()["cores"])
    counts = [threads for threads in options.threads if threads <= cores] or [cores]
    if left_out := [threads for threads in options.threads if threads > cores]:
        emit(Alert("warning", f"This machine has {cores} cores; not measured with {left_out} threads."))
    entries = []
    for done, threads in enumerate(counts):
        stage = f"profile.{'gguf' if artifact.is_file() else 'onnx'}"
        emit(Progress(stage, done, len(counts), "thread counts", f"{threads} threads"))
        found = _run(artifact, runtime, threads, options)
        entry: dict[str, Any] = {"artifact": artifact.name, "runtime": runtime, "threads": threads}
        entry |= {metric: _spread([run[metric] for run in found["runs"]]) for metric in METRICS}
        entry |= {
            "peak_rss_mib": round(found["peak_rss_mib"], 1),
            "joules_per_token": found["joules_per_token"],
        }
        entry |= {"prompt_tokens": options.prompt_tokens, "generate_tokens": options.generate_tokens}
        entries.append(entry | {"simulated": simulated})
        emit(Measured(stage, "decode_tokens_per_s", entry["decode_tokens_per_s"]["median"], "tokens/s"))
    return entries


def _run(artifact: Path, runtime: str, threads: int, options: Profile) -> dict[str, Any]:
    task = {
        "artifact": str(artifact),
        "runtime": runtime,
        "threads": threads,
        **options.model_dump(include={"prompt_tokens", "generate_tokens", "warmup", "repeats"}),
    }
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.profiles.probe"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise StageError(
            f"{artifact.name} could not be profiled in {runtime}: {reason}", "Run it again with -v."
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
        "n": len(values),
    }
