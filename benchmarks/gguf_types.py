"""GGUF types for the demo's tuned model: bytes against drift, with and without an importance matrix.

    python benchmarks/gguf_types.py [MERGED_FOLDER]

Every file is made by llama.cpp's quantizer from the same float file; a row without importance matrix and without
tensor types is what `llama-quantize` does by itself, but for rows of Q5_K_M that it would put into Q5_1: they are kept
in Q8_0. Scored against the merged fp32 model at every position of 48 validation conversations (the gates count what all
conversations begin with once); "answers" are the positions where the model speaks.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import newest_merge

from edgekit.base import hardware
from edgekit.data.dataset import load_dataset
from edgekit.export.gguf import imatrix, quantize
from edgekit.export.gguf import write as gguf
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof.drift import capture, score
from edgekit.registry import load
from edgekit.targets.target import GgufExport

ROWS, CONVERSATIONS = 128, 48
DOWN, KEYS, ATTENTION = (
    {"ffn_down": "Q6_K"},
    {"ffn_down": "Q6_K", "attn_[kv]": "Q8_0"},
    {"ffn_down": "Q6_K", "attn": "Q8_0"},
)
VARIANTS: list[tuple[str, dict[str, str], bool]] = [
    ("Q4_0", {}, False),
    ("Q4_0", {}, True),
    ("Q4_K_M", {}, False),
    ("Q4_K_M", {}, True),
    ("Q4_K_M", DOWN, True),
    ("Q4_K_M", KEYS, True),
    ("Q4_K_M", ATTENTION, True),
    ("Q4_K_M", {"ffn_down": "Q8_0", "attn": "Q8_0"}, True),
    ("Q5_K_M", {}, False),
    ("Q5_K_M", {}, True),
    ("Q8_0", {}, False),
]


def main() -> None:
    """Print one row for each type and calibration."""
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else newest_merge()
    data = load_dataset("demo")
    tokenizer = ModelTokenizer(model)
    calibration = tokenizer.render_ids(data.train[:: len(data.train) // ROWS][:ROWS])
    rows = data.validation[:CONVERSATIONS]
    sequences = tokenizer.render_ids(rows)
    prompts = [tokenizer.chat_template.render(row.messages[:-1], add_generation_prompt=True) for row in rows]
    starts = np.array([len(tokenizer.encode(prompt)) - 1 for prompt in prompts])
    reference = load("runtimes", "torch")(model)
    stored = capture(reference, sequences, [0] * len(sequences))
    reference.close()
    matrix = imatrix.importance(model, calibration, lambda event: None)
    print(hardware.fingerprint()["cpu"], "\n")
    print(
        "| type | tensor types | importance matrix | bytes | mean KLD | p99 | same token | in answers: mean KLD | same token |"
    )
    print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        floats, out = Path(folder) / "model.f32.gguf", Path(folder) / "model.gguf"
        gguf.write(model, floats, lambda event: None)
        for kind, types, weighted in VARIANTS:
            options = GgufExport(format="gguf", type=kind, tensor_types=types)
            quantize.quantize(floats, out, options, imatrix=matrix if weighted else None)
            runtime = load("runtimes", "llama.cpp")(out)
            scored = score(runtime, stored)
            runtime.close()
            everywhere, spoken = scored.drift, scored.among(scored.position >= starts[scored.sequence])
            names = ", ".join(f"{pattern} {type}" for pattern, type in types.items())
            print(
                f"| {kind} | {names} | {'yes' if weighted else 'no'} | {out.stat().st_size:,} "
                f"| {everywhere.mean_kld_nats:.4f} | {everywhere.p99_kld_nats:.3f} | {everywhere.top1_agreement:.1%} "
                f"| {spoken.mean_kld_nats:.4f} | {spoken.top1_agreement:.1%} |",
                flush=True,
            )
            out.unlink()


if __name__ == "__main__":
    main()
