"""The drift store against llama-perplexity's base logits: bytes, memory, time, and whether the figures agree.

    python benchmarks/drift_store.py [--llama-perplexity PROGRAM] [--types Q8_0 ...] [--tokens 12000]

The sample model as F16 is the reference, quantized files of it are the candidates, and the text is the topics of
Python's own help. Both score the second half of each window; llama-perplexity leaves out its last position. The figure
that both should give is the sum over the whole vocabulary in float64, from the logits of the same two files.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from common import MIB, Cost, watched

from edgekit.base import hardware
from edgekit.base.events import ignore
from edgekit.export.gguf import write as gguf
from edgekit.export.gguf.quantize import quantize
from edgekit.models import source as model
from edgekit.proof.drift import kl_divergence
from edgekit.registry import load
from edgekit.targets.target import GgufExport

TYPES = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0")
EDGEKIT = [sys.executable, "-m", "edgekit.cli"]


def main() -> None:
    """Print what storing the reference costs, then one row for each candidate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llama-perplexity", type=Path, help="the program of llama.cpp")
    parser.add_argument("--types", nargs="+", default=TYPES, help="GGUF types of the candidates")
    parser.add_argument("--tokens", type=int, default=12_000)
    parser.add_argument("--context", type=int, default=512)
    arguments = parser.parse_args()
    peer, context = arguments.llama_perplexity and arguments.llama_perplexity.resolve(), arguments.context
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        model.bring_in(model.resolve("smollm2-135m"), work / "model")
        gguf.write(work / "model", work / "float.gguf", ignore)
        for type_ in ("F16", *arguments.types):
            quantize(work / "float.gguf", work / f"{type_}.gguf", GgufExport(format="gguf", type=type_))
        windows = write_text(work, arguments.tokens, context)
        print(f"{hardware.fingerprint()['cpu']}; {len(windows)} windows of {context} tokens\n")

        print("| reference stored by | bytes | peak RSS MiB | seconds |")
        print("|---|--:|--:|--:|")
        ours = ["drift", "capture", "F16.gguf", "--text", "text", "--context", context, "--out", "store.npz"]
        row("edgekit drift capture", watched([*EDGEKIT, *ours, "--threads", 2], work), work / "store.npz")
        common = ["-c", context, "-b", context, "-t", 2]
        if peer:
            base = [peer, "-m", "F16.gguf", "-f", "text", "--kl-divergence-base", "logits", *common]
            row("llama-perplexity", watched(base, work), work / "logits")

        print(
            "\n| candidate | scored by | mean KLD | of the full sum | same token | peak RSS MiB | seconds |"
        )
        print("|---|---|--:|--:|--:|--:|--:|")
        for type_ in arguments.types:
            full, same = full_vocabulary(work / "F16.gguf", work / f"{type_}.gguf", windows, context)
            print(f"| {type_} | the whole vocabulary | {full:.6f} | 100.00 % | {same:.2%} | | |")
            score = ["drift", "score", f"{type_}.gguf", "--reference", "store.npz", "--json", "--quiet"]
            cost = watched([*EDGEKIT, *score, "--worst", 0, "--threads", 2], work)
            found = json.loads(cost.output[cost.output.index("{") :])
            line(type_, "edgekit drift score", found["mean_kld_nats"], full, found["top1_agreement"], cost)
            if peer:
                theirs = [peer, "-m", f"{type_}.gguf", "--kl-divergence-base", "logits", "--kl-divergence"]
                cost = watched([*theirs, *common], work)
                kld = float(re.search(r"Mean\s+KLD:\s+([-\d.]+)", cost.output)[1])
                top = float(re.search(r"Same top p:\s+([\d.]+)", cost.output)[1]) / 100
                line(type_, "llama-perplexity", kld, full, top, cost)


def write_text(work: Path, tokens: int, context: int) -> list[list[int]]:
    """Write the text and return its windows of token ids, about `tokens` in all."""
    runtime = load("runtimes", "llama.cpp")(work / "F16.gguf", threads=2)
    words = "\n".join(topics.values())[: 6 * tokens]
    while len(ids := runtime.encode(words)) > tokens + context:
        words = words[: int(len(words) * tokens / len(ids))]
    runtime.close()
    (work / "text").write_text(words, encoding="utf-8")
    return [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)]


def full_vocabulary(
    reference: Path, candidate: Path, windows: list[list[int]], context: int
) -> tuple[float, float]:
    """Mean KLD, nats, summed over every token, and the share of positions with the same most likely token."""
    p, q = (
        load("runtimes", "llama.cpp")(path, threads=2, context=context) for path in (reference, candidate)
    )
    klds, same = [], []
    for ids in windows:
        expected, got = (runtime.logits(ids)[context // 2 :] for runtime in (p, q))
        klds.append(kl_divergence(expected, got))
        same.append(expected.argmax(axis=1) == got.argmax(axis=1))
    p.close()
    q.close()
    return float(np.concatenate(klds).mean()), float(np.concatenate(same).mean())


def row(who: str, cost: Cost, file: Path) -> None:
    """One line of the first table."""
    print(
        f"| {who} | {file.stat().st_size:,} ({file.stat().st_size / MIB:.1f} MiB) | {cost.resident_mib:.0f} "
        f"| {cost.seconds:.1f} |",
        flush=True,
    )


def line(type_: str, who: str, kld: float, full: float, same: float, cost: Cost) -> None:
    """One line of the second table."""
    print(
        f"| {type_} | {who} | {kld:.6f} | {kld / full:.2%} | {same:.2%} | {cost.resident_mib:.0f} | {cost.seconds:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
