"""The child process of the profiler: limits itself, opens one artifact, answers prompts, and prints the measurements as
JSON.

    echo '{"artifact": ..., "runtime": ..., ...}' | python -m edgekit.profiles.probe
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base.memory import own_peak_mib
from edgekit.profiles import limits


def main() -> None:
    """Read the task from stdin and write the measurements to stdout; the libraries' output goes to stderr."""
    task = json.load(sys.stdin)
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    applied = limits.apply(task.get("cores"), task.get("memory_mib"))
    try:
        found = measure(task, applied)
    except limits.MemoryExceededError as error:
        found = {"exceeded_mib": error.peak_mib}
    json.dump(found, results)
    results.close()


def measure(task: dict[str, Any], applied: limits.Applied = limits.Applied()) -> dict[str, Any]:
    """Measurements of each run after the warm-up, the peak resident memory in MiB, and the limits that were applied.

    Raises `MemoryExceededError` as soon as the process exceeds the memory limit of `applied`.
    """
    length, count = task["prompt_tokens"], task["generate_tokens"]
    joules = _Joules()
    model = registry.load("runtimes", task["runtime"])(
        Path(task["artifact"]), threads=task["threads"], context=length + count + 8
    )
    applied.check()
    chance = random.Random(0)
    runs: list[dict[str, float]] = []
    energy = 0.0
    for number in range(task["warmup"] + task["repeats"]):
        # a new prompt each time, so that no cached prefix saves work
        prompt = [chance.randrange(3, model.vocab_size) for _ in range(length)]
        before, start = joules.read(), time.perf_counter()
        answer = model.generate(prompt, count, ignore_stop=True)
        next(answer)
        first = time.perf_counter()
        rest = sum(1 for _ in answer)
        end = time.perf_counter()
        applied.check()
        if number >= task["warmup"]:
            runs.append(
                {
                    "ttft_ms": 1000 * (first - start),
                    "prefill_tokens_per_s": length / (first - start),
                    "decode_tokens_per_s": rest / (end - first),
                }
            )
            energy += joules.read() - before
    model.close()
    tokens = task["repeats"] * (length + count)
    return {
        "runs": runs,
        "peak_rss_mib": own_peak_mib(),
        "joules_per_token": energy / tokens if joules.files else None,
        "limits": {"threads": task["threads"], **asdict(applied)},
    }


class _Joules:
    """Energy that the processor packages used since boot, from Linux powercap (RAPL), where it can be read."""

    def __init__(self) -> None:
        files = Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj")
        self.files = [file for file in files if os.access(file, os.R_OK)]

    def read(self) -> float:
        return sum(int(file.read_text()) for file in self.files) / 1e6


if __name__ == "__main__":
    main()
