"""Decoding speed of each GGUF type in llama.cpp, as a share of the time of a Q8_0 file.

    python benchmarks/kernels.py [MODEL ...]

Each file has all its matrices in one type and a hole in place of the weights; llama.cpp decodes with it on one thread and on
all cores. Types that the rows of a model do not divide into are left out. Without a MODEL it is the last merged one. Let
nothing else run on the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import newest_merge

from edgekit.base import hardware
from edgekit.export.gguf import kernels
from edgekit.export.gguf.grids import GRIDS
from edgekit.export.gguf.write import read_model
from edgekit.targets.target import GgufExport


def main() -> None:
    """Print one row for each type, and one column for each model and number of threads."""
    models = list(map(Path, sys.argv[1:])) or [newest_merge()]
    counts = sorted({1, int(hardware.fingerprint()["cores"])})
    print(f"{hardware.fingerprint()['cpu']}\n")
    times = {(model, threads): _times(model, threads) for model in models for threads in counts}
    heads = [f"{model.name}, {threads} thread{'s' * (threads > 1)}" for model, threads in times]
    print(f"| type | {' | '.join(heads)} | used |\n|---|{'--:|' * (len(heads) + 1)}")
    for type in GRIDS:
        found = [f"{each[type]:.2f}" if type in each else "" for each in times.values()]
        print(f"| {type} | {' | '.join(found)} | {kernels.TIME[type]:.2f} |")


def _times(model: Path, threads: int) -> dict[str, float]:
    """The time of a token with each type, as a share of Q8_0's."""
    columns = {tensor.shape[1] for tensor in read_model(model).tensors if len(tensor.shape) == 2}

    def seconds(type: str) -> float:
        options = GgufExport(format="gguf", type="Q8_0").model_copy(update={"tensor_types": {"": type}})
        return 1 / kernels.decode_speed(model, options, threads)

    fitting = [name for name, grid in GRIDS.items() if all(count % grid.block == 0 for count in columns)]
    usual = seconds(kernels.USUAL)
    return {type: seconds(type) / usual for type in fitting}


if __name__ == "__main__":
    main()
