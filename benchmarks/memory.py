"""Memory, disk and time of every stage on a model of billions of weights, beside what `plan` expects.

    python benchmarks/memory.py --size 0.5 [--verb export|build] [--work FOLDER] [--code CHECKOUT]

Writes the model of `synthetic.py` and a small data set, and runs one command in a process of its own. Memory is the most
that the process tree holds: all resident pages, those of mapped files included. Extra disk is the most that lies in the
cache and in the output together. A failed gate (exit code 3) is no error here: the model's answers are noise.
With --code the command runs the edgekit of another checkout, to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import synthetic
from common import EVERY_S, MIB, memory_of
from streaming_export import on_disk

HERE = Path(__file__).parents[1]
FEW_STEPS = ("tune.epochs=1", "tune.batch_size=8", "profile.repeats=3")


def main() -> None:
    """Print one row for each stage, then the whole command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=synthetic.SIZES, default="0.5")
    parser.add_argument("--verb", choices=("export", "build"), default="export")
    parser.add_argument("--work", type=Path, help="where the working folder is made")
    parser.add_argument("--model", type=Path, help="a model that synthetic.py has written")
    parser.add_argument("--code", type=Path, default=HERE)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    size = synthetic.SIZES[arguments.size]
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        model = arguments.model or synthetic.write(folder / "model", size)
        rows = synthetic.write_rows(folder / "rows")
        cache, out = folder / "cache", folder / "out"
        given = [str(model)] if arguments.verb == "export" else ["--model", str(model)]
        options = ["--data", str(rows), "--cache-dir", str(cache), "--out", str(out)]
        for change in (*FEW_STEPS, *arguments.set):
            options += ["--set", change]
        weights = 2 * synthetic.parameters(size) / MIB
        command = [sys.executable, "-m", "edgekit.cli", arguments.verb, *given, *options]
        rss, disk, seconds, code = watch(command, arguments.code, [cache, out])
        print(
            f"\n`{arguments.verb}` of {synthetic.parameters(size):,} weights ({weights:,.0f} MiB in bfloat16)"
        )
        print("| stage | peak RSS MiB | seconds |\n|---|--:|--:|")
        for stage in stages(cache):
            print(f"| {stage['stage']} | {stage['peak_rss_mib']:,.0f} | {stage['seconds']:,.0f} |")
        print(f"| whole command (exit code {code}) | {rss:,.0f} | {seconds:,.0f} |")
        print(f"\nExtra disk at most {disk:,.0f} MiB; the output takes {on_disk(out) / MIB:,.0f} MiB.")


def stages(cache: Path) -> list[dict[str, float]]:
    """The records of the finished stages, in the order in which they ended."""
    files = sorted(cache.glob("*/*/stage.json"), key=lambda file: file.stat().st_mtime_ns)
    return [json.loads(file.read_text()) for file in files]


def watch(command: list[str], code: Path, folders: list[Path]) -> tuple[float, float, float, int]:
    """Peak memory and disk in MiB, seconds, and the exit code."""
    start, rss, disk, turn = time.perf_counter(), 0, 0, 0
    with subprocess.Popen(command, cwd=code, env={**os.environ, "PYTHONPATH": str(code)}) as process:
        while process.poll() is None:
            rss = max(rss, memory_of(process.pid)[0])
            if turn % 20 == 0:
                disk = max(disk, sum(on_disk(folder) for folder in folders if folder.exists()))
            turn += 1
            time.sleep(EVERY_S)
    return rss / MIB, disk / MIB, time.perf_counter() - start, process.returncode


if __name__ == "__main__":
    main()
