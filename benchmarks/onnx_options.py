"""What the ways of rounding an ONNX folder cost and save, on the demo's tuned model.

    python benchmarks/onnx_options.py [MERGED_FOLDER [TEXT_FILE]]

The first rows are the model builder's own quantizers, the others edgekit's. Each folder is scored against the fp32
model in torch on 48 validation conversations, as the gates are, and on 768 tokens of plain text if a file is named.
The folders are made one after another in a temporary folder of at most 1 GB.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from common import newest_merge

from edgekit.base import hardware
from edgekit.base.events import ignore
from edgekit.data.dataset import load_dataset
from edgekit.export.onnx import build as onnx_build
from edgekit.export.onnx import export as onnx
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof.drift import Drift, capture, score
from edgekit.registry import ExportContext, load
from edgekit.targets.target import OnnxExport

MIXED = [{"match": {"preset": name}, "type": "int8"} for name in ("last_matmul", "mixed_layers")]
BUILDER: dict[str, dict[str, Any]] = {
    "builder: fp32": {"type": "none"},
    "builder: int4 (its default)": {"type": "int4", "accuracy_level": 4},
    "builder: int4 k_quant": {"type": "int4", "accuracy_level": 4, "method": "k_quant"},
    "builder: int4 k_quant, blocks of 16": {
        "type": "int4",
        "accuracy_level": 4,
        "method": "k_quant",
        "block_size": 16,
    },
    "builder: int4 k_quant, mixed int8": {
        "type": "int4",
        "accuracy_level": 4,
        "method": "k_quant",
        "overrides": MIXED,
    },
    "builder: int8": {"type": "int8", "accuracy_level": 4},
}
DOWN_TOO = ["*.k_proj", "*.v_proj", "*.down_proj"]
EDGEKIT: dict[str, dict[str, Any]] = {
    "int4, nothing at int8": {"int8_modules": []},
    "int4, k and v at int8": {"int8_modules": DOWN_TOO[:2]},
    "int4, k, v and down at int8 (default)": {"int8_modules": DOWN_TOO},
    "int4, the same without calibration": {"int8_modules": DOWN_TOO, "calibration": []},
    "int4, the same, blocks of 16": {"int8_modules": DOWN_TOO, "block_size": 16},
    "int4, the same, blocks of 64": {"int8_modules": DOWN_TOO, "block_size": 64},
    "int4, the same, fp32 activations": {"int8_modules": DOWN_TOO, "accuracy_level": 1},
    "int8": {"precision": "int8"},
    "int8, blocks of 128": {"precision": "int8", "block_size": 128},
}  # fmt: skip


def main() -> None:
    """Print the table as Markdown, one row for each folder."""
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else newest_merge()
    text = Path(sys.argv[2]).read_text(encoding="utf-8")[:20_000] if len(sys.argv) > 2 else ""
    data = load_dataset("demo")
    tokenizer = ModelTokenizer(model)
    calibration = tokenizer.render_ids(data.train[:: len(data.train) // 64][:64])
    ids = tokenizer.encode(text)
    samples = {
        "conversations": tokenizer.render_ids(data.validation[:48]),
        "text": [ids[n : n + 256] for n in (0, 256, 512)],
    }
    if not text:
        del samples["text"]
    reference = load("runtimes", "torch")(model)
    stored = {
        name: capture(reference, sequences, [0] * len(sequences)) for name, sequences in samples.items()
    }
    reference.close()
    print(f"{hardware.fingerprint()['cpu']}, 2 threads\n")
    print(
        "| weights | MB | "
        + " | ".join(f"{name}: mean KLD, nats | p99 | same top token" for name in samples),
        end="",
    )
    print(" | decode, tokens/s | made in, s |\n|---|---|" + "---|---|---|" * len(samples) + "---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, options in (BUILDER | EDGEKIT).items():
            out = Path(folder) / "onnx"
            start = time.perf_counter()
            if name in BUILDER:
                with contextlib.redirect_stdout(sys.stderr):
                    onnx_build.build(model, out, Path(folder) / "cache", options)
            else:
                options = {"calibration": calibration, **options}
                context = ExportContext(model, options.pop("calibration"), threads=2)
                onnx.export(model, out, OnnxExport(format="onnx", **options), context, ignore)
            seconds = time.perf_counter() - start
            weights = sum(path.stat().st_size for path in out.glob("model.onnx*"))
            runtime = load("runtimes", "onnxruntime")(out, threads=2)
            drifts = [score(runtime, sample).drift for sample in stored.values()]
            speed = tokens_per_second(runtime, samples["conversations"][0])
            runtime.close()
            shutil.rmtree(out)
            cells = " | ".join(cell(drift) for drift in drifts)
            print(f"| {name} | {weights / 1e6:.1f} | {cells} | {speed:.0f} | {seconds:.0f} |", flush=True)


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
