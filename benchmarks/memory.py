"""Memory, disk and time of every stage on a model of billions of weights, beside what `plan` expects.

    python benchmarks/memory.py --size 0.5 [--verb export|build] [--work FOLDER] [--code CHECKOUT]
    python benchmarks/memory.py --size sample --verb build

Writes the model of `synthetic.py`, or takes the sample model, and a small data set, and runs one command in a process of its own. Memory is the most
that the process tree holds, sampled every 100 ms: all resident pages, those of mapped files included, and the anonymous
ones alone, which the system cannot drop. Extra disk is the most that lies in the cache and in the output together. A failed
gate (exit code 3) is no error here: the model's answers are noise. With --code the command runs the edgekit of another
checkout, to compare with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import synthetic
from common import MIB, memory_of
from streaming_export import on_disk

from edgekit.base.hardware import available_memory_mib
from edgekit.build import needs
from edgekit.build.defaults import DEFAULT_MODEL
from edgekit.build.request import Order
from edgekit.models.source import describe, parameter_count, resolve

HERE = Path(__file__).parents[1]
FEW_STEPS = ("tune.epochs=1", "tune.batch_size=8", "profile.repeats=3")
SAMPLE = "sample"
EVERY_S, DISK_EVERY = 0.1, 10


@dataclass
class Timeline:
    """What a command held, sample by sample: seconds since the epoch, resident and anonymous bytes; and its peak disk."""

    samples: list[tuple[float, int, int]] = field(default_factory=list)
    disk: int = 0

    def peaks(self, start: float, end: float) -> tuple[float, float]:
        """The most resident and the most anonymous MiB between two times."""
        within = [sample for sample in self.samples if start <= sample[0] <= end] or [(0.0, 0, 0)]
        return max(sample[1] for sample in within) / MIB, max(sample[2] for sample in within) / MIB


def main() -> None:
    """Print one row for each stage, then the whole command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=(SAMPLE, *synthetic.SIZES), default="0.5")
    parser.add_argument("--verb", choices=("export", "build"), default="export")
    parser.add_argument("--work", type=Path, help="where the working folder is made")
    parser.add_argument("--model", type=Path, help="a model that synthetic.py has written")
    parser.add_argument("--code", type=Path, default=HERE)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--formats", default="", help="as for the command")
    parser.add_argument("--held-out", type=int, default=16, help="validation rows, and test rows")
    parser.add_argument("--cache", type=Path, help="keeps the finished stages, to go on with them later")
    arguments = parser.parse_args()
    model = arguments.model
    if arguments.size == SAMPLE:
        model, count = Path(DEFAULT_MODEL), parameter_count(describe(resolve(DEFAULT_MODEL)))
    else:
        count = synthetic.parameters(synthetic.SIZES[arguments.size])
    with tempfile.TemporaryDirectory(dir=arguments.work) as name:
        folder = Path(name)
        model = model or synthetic.write(folder / "model", synthetic.SIZES[arguments.size])
        rows = synthetic.write_rows(folder / "rows", arguments.held_out)
        cache, out = (arguments.cache or folder / "cache").resolve(), folder / "out"
        given = [str(model)] if arguments.verb == "export" else ["--model", str(model)]
        options = ["--data", str(rows), "--cache-dir", str(cache), "--out", str(out)]
        for change in (*FEW_STEPS, *arguments.set):
            options += ["--set", change]
        options += ["--formats", arguments.formats] if arguments.formats else []
        command = [sys.executable, "-m", "edgekit.cli", arguments.verb, *given, *options]
        start = time.time()
        seen, code = watch(command, arguments.code, [cache, out])
        print(f"\n`{arguments.verb}` of {count:,} weights ({2 * count / MIB:,.0f} MiB in bfloat16)")
        print(
            "| stage | peak RSS MiB | of it anonymous MiB | expected MiB | seconds |\n|---|--:|--:|--:|--:|"
        )
        expects = expected(str(model), str(rows))
        spells = [spell for spell in stages(cache) if spell[1] > start]
        spells.append(("last steps", time.time()))
        begin = start
        for stage, end in [*spells, ("whole command", time.time())]:
            begin = start if stage == "whole command" else begin
            rss, anonymous = seen.peaks(begin, end)
            wanted = f"{expects[stage]:,.0f}" if stage in expects else ""
            print(f"| {stage} | {rss:,.0f} | {anonymous:,.0f} | {wanted} | {end - begin:,.0f} |")
            begin = end
        print(
            f"\nExit code {code}. Extra disk at most {seen.disk / MIB:,.0f} MiB; the output takes {on_disk(out) / MIB:,.0f} MiB."
        )


def expected(model: str, rows: str) -> dict[str, float]:
    """The memory of each stage that `plan` would expect, MiB; tuning keeps its activations."""
    request = Order(model=model, data=rows, changes=list(FEW_STEPS)).request()
    source = needs.Source.of(describe(request.source), is_gguf=request.source.kind == "gguf")
    tuning = needs.tuning(source, request.target.tune, request.data)
    return needs.stage_memory(
        source, request.target, request.data, tuning.weights + tuning.kept, available_memory_mib()
    )


def stages(cache: Path) -> Iterator[tuple[str, float]]:
    """The name of each finished stage and the time of its end, in order; a stage begins where the last one ended.

    Without the events that a build records, it is the time when a stage's record was last used, which is later for an ONNX
    folder: its files are linked to the output at the end.
    """
    events = cache / "events.jsonl"
    if events.is_file():
        for event in map(json.loads, events.read_text("utf-8").splitlines()):
            if event["event"] == "StageFinished":
                yield event["stage"], event["time"]
        return
    for used, record in sorted((file.stat().st_mtime, file) for file in cache.glob("*/*/stage.json")):
        yield json.loads(record.read_text())["stage"], used


def watch(command: list[str], code: Path, folders: list[Path]) -> tuple[Timeline, int]:
    """What the process tree of `command` held, and its exit code."""
    seen, turn = Timeline(), 0
    with subprocess.Popen(command, cwd=code, env={**os.environ, "PYTHONPATH": str(code)}) as process:
        while process.poll() is None:
            seen.samples.append((time.time(), *memory_of(process.pid)))
            if turn % DISK_EVERY == 0:
                seen.disk = max(seen.disk, on_disk(*folders))
            turn += 1
            time.sleep(EVERY_S)
    return seen, process.returncode


if __name__ == "__main__":
    main()
