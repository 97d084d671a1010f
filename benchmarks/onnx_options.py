"""What the ways of rounding an ONNX folder cost and save, on the demo's tuned model.

    python benchmarks/onnx_options.py [MERGED_FOLDER] [--plain TEXT_FILE]

The first rows are the options of onnxruntime-genai's model builder as its command line takes them, the others edgekit's, three of
them within the bytes of a row of the builder. Each folder is scored against the fp32 model in torch on 48 validation
conversations, as the gates are, and on 3,072 tokens of plain text if a file is named. The folders are made one after another in
a temporary folder of at most 1 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from common import newest_merge

from edgekit.base import hardware
from edgekit.data.calibration_text import passages, windows
from edgekit.data.dataset import load_dataset
from edgekit.data.rows import evenly_spaced
from edgekit.export.onnx import export as onnx
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof.drift import Drift, capture, score
from edgekit.registry import ExportContext, load
from edgekit.targets.target import OnnxExport, Quantize

BUILDER: dict[str, tuple[str, list[str]]] = {
    "builder: fp32": ("fp32", []),
    "builder: int4 (its default)": ("int4", []),
    "builder: int4 k_quant": ("int4", ["algo_config=k_quant"]),
    "builder: int4 k_quant, blocks of 16": ("int4", ["algo_config=k_quant", "block_size=16"]),
    "builder: int4 k_quant_last": ("int4", ["algo_config=k_quant_last"]),
    "builder: int4 k_quant_mixed": ("int4", ["algo_config=k_quant_mixed"]),
    "builder: int8": ("int8", []),
}
WITHIN = {
    f"edgekit, within {name.removeprefix('builder: ')}": name
    for name in ("builder: int4 (its default)", "builder: int4 k_quant_last", "builder: int4 k_quant_mixed")
}
"""Rows of edgekit that may take the bytes of a row of the builder."""
MOST = ["*.k_proj", "*.v_proj", "*.down_proj"]
EDGEKIT: dict[str, dict[str, Any]] = {
    "int4, k, v and down at int8 (default)": {"int8_modules": MOST},
    "int4, nothing at int8 but the head": {"int8_modules": []},
    "int4, k and v at int8": {"int8_modules": MOST[:2]},
    "int4, the default without calibration": {"int8_modules": MOST, "calibrated": False},
    "int8": {"precision": "int8"},
}  # fmt: skip


def by_builder(model: Path, out: Path, cache: Path, precision: str, options: list[str]) -> None:
    """What the command line of the model builder does; with it a tied embedding is read from the head."""
    from onnxruntime_genai.models import builder

    given = ["hf_token=false", *options]
    parsed = builder.parse_extra_options("", str(model), str(out), precision, "cpu", str(cache), given)
    builder.create_model("", str(model), str(out), precision, "cpu", str(cache), **parsed)


def main() -> None:
    """Print the table as Markdown, one row for each folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help="a merged folder; by default that of the demo")
    parser.add_argument("--plain", type=Path, help="plain text that no calibration has seen")
    given = parser.parse_args()
    model = given.model or newest_merge()
    data = load_dataset("demo")
    tokenizer = ModelTokenizer(model)
    context = ExportContext(
        model,
        tokenizer.render_ids(evenly_spaced(data.train, 128)),
        threads=2,
        texts=windows(tokenizer, passages(), count=Quantize().calibration_texts),
    )
    samples = {"conversations": tokenizer.render_ids(data.validation[:48])}
    if given.plain:
        ids = tokenizer.encode(given.plain.read_text(encoding="utf-8")[:60_000])
        samples["plain text"] = [ids[n : n + 256] for n in range(0, 3072, 256)]
    reference = load("runtimes", "torch")(model)
    stored = {
        name: capture(reference, sequences, [0] * len(sequences)) for name, sequences in samples.items()
    }
    reference.close()
    print(f"{hardware.fingerprint()['cpu']}, 2 threads\n")
    heads = "".join(f" {name}: mean KLD, nats | p99 | same top token |" for name in samples)
    print(f"| weights | graph and weights, bytes | folder, bytes |{heads} decode, tokens/s | made in, s |")
    print("|---|--:|--:|" + "--:|--:|--:|" * len(samples) + "--:|--:|")
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in [*BUILDER, *WITHIN, *EDGEKIT]:
            out = Path(folder) / "onnx"
            start = time.perf_counter()
            if name in BUILDER:
                with contextlib.redirect_stdout(sys.stderr):
                    by_builder(model, out, Path(folder) / "cache", *BUILDER[name])
            else:
                options = dict(EDGEKIT.get(name) or {"size_mib": sizes[WITHIN[name]] / 2**20})
                text = (
                    context if options.pop("calibrated", True) else replace(context, calibration=(), texts=())
                )
                onnx.export(model, out, OnnxExport(format="onnx", **options), text)
            seconds = time.perf_counter() - start
            sizes[name] = sum(path.stat().st_size for path in out.iterdir())
            weights = sum(path.stat().st_size for path in out.glob("model.onnx*"))
            runtime = load("runtimes", "onnxruntime")(out, threads=2)
            drifts = [score(runtime, sample).drift for sample in stored.values()]
            speed = tokens_per_second(runtime, samples["conversations"][0])
            runtime.close()
            shutil.rmtree(out)
            cells = " | ".join(cell(drift) for drift in drifts)
            print(
                f"| {name} | {weights:,} | {sizes[name]:,} | {cells} | {speed:.0f} | {seconds:.0f} |",
                flush=True,
            )


def cell(drift: Drift) -> str:
    """Three cells of the table."""
    return f"{drift.mean_kld_nats:.4f} | {drift.p99_kld_nats:.3f} | {drift.top1_agreement:.1%}"


def tokens_per_second(runtime: Any, ids: list[int], count: int = 48) -> float:
    """The best of three runs of greedy decoding, after the first token."""
    best = 0.0
    for _ in range(3):
        answer = runtime.generate(ids, count, ignore_stop=True)
        next(answer)
        start = time.perf_counter()
        best = max(best, sum(1 for _ in islice(answer, count)) / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
