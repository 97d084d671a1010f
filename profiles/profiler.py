"""Speed and memory of an exported artifact: each thread count in a fresh process, median with min and max."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.base.child import SAFE_PATH
from edgekit.base.errors import StageError
from edgekit.base.events import Alert, Emit, Measured, Progress, ignore
from edgekit.base.hardware import fingerprint
from edgekit.targets.host import Host
from edgekit.targets.target import Device, Profile

METRICS = ("ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s")


def profile(
    artifact: Path, runtime: str, options: Profile, *, device: Device | None = None, emit: Emit = ignore
) -> list[dict[str, Any]]:
    """One entry of the report's `profile` for each thread count, up to the number of cores of this machine.

    `ttft_ms` is the time to the first token of a prompt of `prompt_tokens`, `decode_tokens_per_s` counts the tokens
    after it. With a `device`, each measured process is limited to the device's cores and memory; `limits` records
    what was applied, and `simulated` whether this machine is not the device. Raises `StageError` when the
    artifact cannot be opened in a process of its own, or does not fit in the device's memory.
    """
    cores = int(fingerprint()["cores"])
    counts = [threads for threads in options.threads if threads <= cores] or [cores]
    if left_out := [threads for threads in options.threads if threads > cores]:
        emit(Alert("warning", f"Not measured with {left_out} threads: this machine has {cores} cores."))
    differs = device.differs(Host.here()) if device else ""
    entries = []
    for done, threads in enumerate(counts):
        onnx = (artifact / "genai_config.json").is_file()
        stage = f"profile.{'gguf' if artifact.is_file() else 'onnx' if onnx else 'folder'}"
        emit(Progress(stage, done, len(counts), "thread counts", f"{threads} threads"))
        found = _run(artifact, runtime, threads, options, device)
        entry: dict[str, Any] = {"artifact": artifact.name, "runtime": runtime, "threads": threads}
        entry |= {metric: _spread([run[metric] for run in found["runs"]]) for metric in METRICS}
        entry |= {
            "peak_rss_mib": round(found["peak_rss_mib"], 1),
            "joules_per_token": found["joules_per_token"],
        }
        entry |= {"prompt_tokens": options.prompt_tokens, "generate_tokens": options.generate_tokens}
        entries.append(entry | {"simulated": bool(differs), "differs": differs, "limits": found["limits"]})
        emit(Measured(stage, "decode_tokens_per_s", entry["decode_tokens_per_s"]["median"], "tokens/s"))
    return entries


def _run(
    artifact: Path, runtime: str, threads: int, options: Profile, device: Device | None
) -> dict[str, Any]:
    task: dict[str, Any] = {
        "artifact": str(artifact),
        "runtime": runtime,
        "threads": threads,
        **options.model_dump(include={"prompt_tokens", "generate_tokens", "warmup", "repeats"}),
    }
    if device is None:
        return _opened(_probe(task), artifact, runtime)
    limited = _probe(task | {"cores": max(threads, device.threads), "memory_mib": device.memory_mib})
    hint = "Use a type with fewer bits, a smaller model, or a target whose device has more memory."
    limit = f"{device.memory_mib} MiB (device.memory_mib)"
    if isinstance(limited, str) and not isinstance(_probe(task | {"warmup": 0, "repeats": 1}), str):
        raise StageError(
            f"{artifact.name} does not fit in the device's memory: {runtime} fails with a limit of {limit} "
            f"and works without it.",
            hint,
        )
    found = _opened(limited, artifact, runtime)
    if "exceeded_mib" in found:
        raise StageError(
            f"{artifact.name} does not fit in the device's memory: {runtime} used {found['exceeded_mib']:.0f} MiB, "
            f"and the limit is {limit}.",
            hint,
        )
    return found


def _probe(task: dict[str, Any]) -> dict[str, Any] | str:
    """The measurements of the child process, or the last line of its error output when it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.profiles.probe"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **SAFE_PATH},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return re.sub(r"^edgekit\.base\.errors\.\w+: ", "", last)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _opened(found: dict[str, Any] | str, artifact: Path, runtime: str) -> dict[str, Any]:
    if isinstance(found, str):
        raise StageError(
            f"{artifact.name} could not be profiled in {runtime}: {found}", "Run the command again with -v."
        )
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
        "n": len(values),
    }
