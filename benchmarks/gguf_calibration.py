"""Q4_K_M of the demo's tuned model with and without the importance matrix of its own training rows.

    python benchmarks/gguf_calibration.py [MERGED_FOLDER]

Both files are made by llama.cpp's quantizer from the same float file; without the matrix it is what `llama-quantize`
does by itself. Scored against the merged fp32 model on 48 validation conversations, as the gates are.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from edgekit import hardware
from edgekit.data.dataset import load_dataset
from edgekit.export import gguf, imatrix, quantize
from edgekit.proof.drift import capture, score
from edgekit.registry import load
from edgekit.tokenizer import ModelTokenizer

TYPES = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0")


def newest_merge() -> Path:
    """The merged folder of the last build in `.edgekit/cache`."""
    folders = [path.parent for path in Path(".edgekit/cache/merge").glob("*/stage.json")]
    if not folders:
        sys.exit("There is no merged model: run `make demo` first, or name a folder.")
    return max(folders, key=lambda folder: folder.stat().st_mtime)


def main() -> None:
    """Print one row for each type and calibration."""
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else newest_merge()
    data = load_dataset("demo")
    tokenizer = ModelTokenizer(model)
    calibration = tokenizer.render_ids(data.train[:: len(data.train) // 64][:64])
    sequences = tokenizer.render_ids(data.validation[:48])
    reference = load("runtimes", "torch")(model)
    stored = capture(reference, sequences, [0] * len(sequences))
    reference.close()
    start = time.perf_counter()
    weights = imatrix.importance(model, calibration)
    print(
        f"{hardware.fingerprint()['cpu']}; importance matrix of {len(calibration)} rows: {time.perf_counter() - start:.0f} s\n"
    )
    print("| type | importance matrix | bytes | mean KLD, nats | p99 | same top token |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / "model.f32.gguf"
        gguf.write(model, floats, lambda event: None)
        for kind in TYPES:
            for name, matrix in {"no": None, "yes": weights}.items():
                out = Path(folder) / "model.gguf"
                quantize.quantize(floats, out, kind, imatrix=matrix)
                runtime = load("runtimes", "llama.cpp")(out)
                drift = score(runtime, stored).drift
                runtime.close()
                size = f"{out.stat().st_size:,}"
                out.unlink()
                print(
                    f"| {kind} | {name} | {size} | {drift.mean_kld_nats:.4f} | {drift.p99_kld_nats:.3f} "
                    f"| {drift.top1_agreement:.1%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
