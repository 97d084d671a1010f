"""How much of a merged LoRA adapter is left after rounding, by GGUF type.

    python benchmarks/adapter_kept.py [BASE_FOLDER MERGED_FOLDER]

For each type of the `ffn_down` tensors: the difference between the file's weights and the base's, projected on the
adapter's update (1: the whole update is kept, 0: rounding removed it). The base of the demo was stored in Q4_1, so its weights lie on a grid;
in the second column, noise of up to half a step of Q4_1 takes the same base off its grid first.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import newest
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from edgekit.base import hardware
from edgekit.data.dataset import load_dataset
from edgekit.export.gguf import imatrix, quantize
from edgekit.export.gguf import write as gguf
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.targets.target import GgufExport

Weights = dict[str, NDArray[np.float32]]
ROWS = 128
TYPES = ("Q4_0", "Q4_1", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_M", "Q6_K", "Q8_0")
DOWN = re.compile(r"blk\.(\d+)\.ffn_down\.weight")


def main() -> None:
    """Print one row for each type."""
    start, folder = map(Path, sys.argv[1:]) if sys.argv[1:] else (newest("model"), newest("merge"))
    base, merged = (load_file(model / "model.safetensors") for model in (start, folder))
    data = load_dataset("demo")
    rows = ModelTokenizer(folder).render_ids(data.train[:: len(data.train) // ROWS][:ROWS])
    matrix = imatrix.importance(folder, rows, lambda event: None)
    with tempfile.TemporaryDirectory() as place:
        noise = off_the_grid(base)
        moved = shutil.copytree(folder, Path(place) / "moved")
        save_file(
            {name: values + noise.get(name, 0) for name, values in merged.items()},
            moved / "model.safetensors",
            {"format": "pt"},
        )
        floats = []
        for number, model in enumerate((folder, moved)):
            floats.append(Path(place) / f"{number}.gguf")
            gguf.write(model, floats[-1], lambda event: None)
        print(hardware.fingerprint()["cpu"], "\n")
        print("| type of ffn_down | of the update on a base that was Q4_1 | on a base off that grid |")
        print("|---|--:|--:|")
        for kind in TYPES:
            shares = [
                kept(source, kind, matrix, base, merged, shift)
                for source, shift in zip(floats, ({}, noise), strict=True)
            ]
            print(f"| {kind.removesuffix('_M')} | {shares[0]:.0%} | {shares[1]:.0%} |", flush=True)


def off_the_grid(base: Weights) -> Weights:
    """Noise for each `ffn_down` tensor: uniform, up to half a step of a block of 32 weights in 16 values."""
    chance = np.random.default_rng(0)
    noise = {}
    for name, values in base.items():
        if name.endswith("mlp.down_proj.weight"):
            blocks = values.reshape(-1, 32)
            steps = (blocks.max(1) - blocks.min(1)) / 15
            noise[name] = (
                (steps[:, None] * chance.uniform(-0.5, 0.5, blocks.shape))
                .reshape(values.shape)
                .astype(np.float32)
            )
    return noise


def kept(source: Path, kind: str, matrix: Weights, base: Weights, merged: Weights, shift: Weights) -> float:
    """The share of the update that is left in all `ffn_down` tensors together."""
    out = source.with_suffix(".quantized")
    quantize.quantize(
        source, out, GgufExport(format="gguf", type="Q8_0", tensor_types={"ffn_down": kind}), imatrix=matrix
    )
    along = size = 0.0
    for tensor in GGUFReader(out).tensors:
        if not (found := DOWN.fullmatch(tensor.name)):
            continue
        name = f"model.layers.{found[1]}.mlp.down_proj.weight"
        update = merged[name] - base[name]
        held = dequantize(tensor.data, tensor.tensor_type)
        along += float(np.vdot(held - base[name] - shift.get(name, 0), update))
        size += float(np.vdot(update, update))
    out.unlink()
    return along / size


if __name__ == "__main__":
    main()
