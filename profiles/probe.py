"""The child process of the profiler: opens one artifact, answers a few prompts, and prints what it cost as JSON.

echo '{"artifact": ..., "runtime": ..., ...}' | python -m edgekit.profiles.probe
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base.memory import own_peak_mib


def main() -> None:
    """Read the task from stdin, write the readings to stdout, which libraries must not write to."""
    task = json.load(sys.stdin)
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    json.dump(measure(task), results)
    results.close()


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Readings of every counted run, and the peak resident memory of this process, MiB."""
    length, count = task["prompt_tokens"], task["generate_tokens"]
    joules = _Joules()
    model = registry.load("runtimes", task["runtime"])(
        Path(task["artifact"]), threads=task["threads"], context=length + count + 8
    )
    chance = random.Random(0)
    runs: list[dict[str, float]] = []
    energy = 0.0
    for number in range(task["warmup"] + task["repeats"]):
        # another prompt each time, so that nothing remembered of the last one helps
        prompt = [chance.randrange(3, model.vocab_size) for _ in range(length)]
        before, start = joules.read(), time.perf_counter()
        answer = model.generate(prompt, count, ignore_stop=True)
        next(answer)
        first = time.perf_counter()
        rest = sum(1 for _ in answer)
        end = time.perf_counter()
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
    }


class _Joules:
    """Energy of the processor packages since boot, from Linux' powercap (RAPL), where it may be read."""

    def __init__(self) -> None:
        files = Path("/sys/class/powercap").glob("intel-rapl:?/energy_uj")
        self.files = [file for file in files if os.access(file, os.R_OK)]

    def read(self) -> float:
        return sum(int(file.read_text()) for file in self.files) / 1e6


if __name__ == "__main__":
    main()
