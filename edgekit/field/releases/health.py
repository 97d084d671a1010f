"""The health check of a bundle on this machine, in a process of its own, whose end in any way is a result.

python -m edgekit.field.releases.health BUNDLE --format gguf --json

It checks the digests and the golden answers, compares the time to the first token and the decode speed with the
profile of the same kind of machine in the report, and the peak memory with the target's budget.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgekit.base.child import Child
from edgekit.base.errors import ConfigError, CorruptError, EdgekitError
from edgekit.base.events import GateResult
from edgekit.base.memory import own_peak_mib
from edgekit.device.isolated import memory_limit_mib
from edgekit.device.manifest import check_files, read_manifest
from edgekit.field.profile import profiled

Kind = Literal["", "digest", "verdict", "garbage", "slow", "memory", "timeout", "crash"]

LIMIT_S = 300.0
SLOWEST = 2.0  # times as slow as profiled
RUNAWAY = 2.0  # a process that uses this many times its budget is ended
REPEATS = 3


@dataclass(frozen=True)
class Health:
    """The result of a check: `kind` is empty for a healthy bundle, else the kind of its first fault."""

    passed: bool
    kind: Kind
    reason: str
    gates: tuple[GateResult, ...] = ()
    ttft_ms: float | None = None
    decode_tokens_per_s: float | None = None
    peak_rss_mib: float | None = None
    seconds: float = 0.0


def check(
    bundle: Path,
    *,
    format: str | None = None,
    speed: bool = True,
    limit_s: float = LIMIT_S,
    memory_mib: float | None = None,
    threads: int = 0,
) -> Health:
    """Check a bundle, each of its formats (or the named one) in a process of its own; never raises for a bad bundle.

    `speed` measures time and memory too. A process that takes longer than `limit_s` or more memory than `memory_mib` is
    ended, and the check has failed. By default `memory_mib` is twice the target's budget, and without a budget the value
    of `device.isolated.memory_limit_mib` for the file.
    """
    try:
        manifest = read_manifest(bundle)
        formats = [format] if format else list(manifest["formats"])
        budget = float(_budget(manifest).get("peak_rss_mib") or 0)
    except (CorruptError, KeyError, TypeError, ValueError, AttributeError) as error:
        return Health(False, "digest", f"its manifest cannot be used: {error}")
    if memory_mib is None:
        memory_mib = RUNAWAY * budget if budget else memory_limit_mib(bundle)
    found = Health(False, "crash", "its manifest lists no format")
    gates: tuple[GateResult, ...] = ()
    start = time.perf_counter()
    for name in formats:
        found = _in_process(bundle, name, speed, limit_s, memory_mib, threads)
        gates += found.gates
        if not found.passed:
            break
    return replace(found, gates=gates, seconds=round(time.perf_counter() - start, 3))


def _in_process(
    bundle: Path, format: str, speed: bool, limit_s: float, memory_mib: float, threads: int
) -> Health:
    arguments = [str(bundle), "--format", format, "--json", "--threads", str(threads)]
    arguments += [] if speed else ["--no-speed"]
    # the process is ended when it exceeds its limit; until then it cannot reserve much more
    reserved = RUNAWAY * memory_mib
    with Child("edgekit.field.releases.health", arguments, memory_mib=reserved) as child:
        exceeded, reached = child.wait(limit_s, memory_mib)
        if exceeded == "memory":
            reason = f"its process used {reached:.0f} MiB of memory and was ended; the limit is {memory_mib:.0f} MiB"
            return Health(False, "memory", reason, peak_rss_mib=round(reached, 1))
        if exceeded:
            return Health(False, "timeout", f"it was not finished after {limit_s:.0f} s", seconds=reached)
        try:
            values = json.loads(child.output)
            return Health(**{**values, "gates": tuple(GateResult(**gate) for gate in values["gates"])})
        except (ValueError, KeyError, TypeError):
            return Health(
                False, "crash", f"{format}: its process ended unexpectedly ({child.how_it_ended()})"
            )


def examine(bundle: Path, format: str, *, speed: bool = True, threads: int = 0) -> Health:
    """Check one format in this process; never raises for a bad bundle."""
    try:
        manifest = read_manifest(bundle)
        if format not in manifest["formats"]:
            raise ConfigError(
                f"{bundle} holds no '{format}'.", f"It holds: {', '.join(manifest['formats'])}."
            )
        check_files(bundle, manifest)
    except CorruptError as error:
        return Health(False, "digest", error.message)
    cores = os.cpu_count() or 1
    threads = threads or min(int(manifest.get("threads", 2)), cores)
    try:
        from edgekit.proof.golden import open_here, replay

        alone = {**manifest, "formats": {format: manifest["formats"][format]}}
        gates = replay(bundle, alone, threads=threads, opener=open_here)
        readings: dict[str, float] = {}
        if speed:
            faults, readings = _measured(bundle, manifest, format, threads)
            gates += faults
    except MemoryError:
        return Health(False, "memory", f"{format}: there was not enough memory")
    except EdgekitError as error:  # its runtime cannot load it, or cannot answer
        return Health(False, "crash", f"{format}: {error.message}")
    failed = [gate for gate in gates if not gate.passed]
    reason = "; ".join(f"{gate.name}: {gate.detail}" for gate in failed)
    kind: Kind = _kind(failed[0].name) if failed else ""
    return Health(not failed, kind, reason, tuple(gates), **readings)


def _kind(gate: str) -> Kind:
    if gate == "build.verdict":
        return "verdict"
    if gate.endswith("peak_rss_mib"):
        return "memory"
    return "slow" if gate.endswith(("ttft_ms", "decode_tokens_per_s")) else "garbage"


def _measured(
    bundle: Path, manifest: Mapping[str, Any], format: str, threads: int
) -> tuple[list[GateResult], dict[str, float]]:
    """Gates of speed and memory, and the readings: the best of three runs, because the machine may be busy."""
    from edgekit import registry

    entry = manifest["formats"][format]
    measured = profiled(bundle, entry["path"], threads)
    threads = int(measured.get("threads", threads))
    length, count = int(measured.get("prompt_tokens", 64)), int(measured.get("generate_tokens", 16))
    model = registry.load("runtimes", entry["runtime"])(
        bundle / entry["path"], threads=threads, context=length + count + 8
    )
    chance, ttft, rate = random.Random(0), float("inf"), 0.0
    try:
        for _ in range(1 + REPEATS):
            # another prompt each time, so that no cached prefix helps
            prompt = [chance.randrange(3, model.vocab_size) for _ in range(length)]
            start = time.perf_counter()
            answer = model.generate(prompt, count, ignore_stop=True)
            next(answer)
            first = time.perf_counter()
            rest = sum(1 for _ in answer)
            ttft = min(ttft, 1000 * (first - start))
            rate = max(rate, rest / (time.perf_counter() - first))
    finally:
        model.close()
    readings = {"ttft_ms": ttft, "decode_tokens_per_s": rate, "peak_rss_mib": own_peak_mib()}
    readings = {name: round(value, 2) for name, value in readings.items()}
    budget = _budget(manifest)
    slowest, least = [budget.get("ttft_ms")], [budget.get("decode_tokens_per_s")]
    if measured:
        slowest.append(SLOWEST * measured["ttft_ms"]["median"])
        least.append(measured["decode_tokens_per_s"]["median"] / SLOWEST)
    limits = {
        "ttft_ms": min(filter(None, slowest), default=None),
        "decode_tokens_per_s": max(filter(None, least), default=None),
        "peak_rss_mib": budget.get("peak_rss_mib"),
    }
    gates = [_gate(format, name, readings[name], float(limit)) for name, limit in limits.items() if limit]
    return gates, readings


def _gate(format: str, name: str, value: float, limit: float) -> GateResult:
    more_is_better = name == "decode_tokens_per_s"
    passed = value >= limit if more_is_better else value <= limit
    what = {
        "ttft_ms": "ms to the first token, at most",
        "decode_tokens_per_s": "tokens/s, at least",
        "peak_rss_mib": "MiB of memory, at most",
    }[name]
    return GateResult(f"{format}.{name}", value, limit, passed, f"{value:.1f} {what} {limit:.1f}", "health")


def _budget(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return dict(manifest.get("recipe", {}).get("target", {}).get("budget", {}))


def main() -> None:
    """Check one format of a bundle and print the result; exit status 0 only means that the check ran."""
    parser = argparse.ArgumentParser(prog="python -m edgekit.field.releases.health", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--format", required=True, help="gguf or onnx")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes the manifest's")
    parser.add_argument("--no-speed", action="store_true", help="digests and golden answers only")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the JSON document
    found = examine(options.bundle, options.format, speed=not options.no_speed, threads=options.threads)
    output.write(json.dumps(asdict(found)) if options.json else found.reason or "fit")
    output.write("\n")
    output.close()


if __name__ == "__main__":
    main()
