"""The child process of the ONNX export: rounds the weights, then runs onnxruntime-genai's model builder.

    echo '{"model": ..., "out": ..., ...}' | python -m edgekit.export.onnx.build

Progress goes to stdout, one JSON list `[done, total, unit]` on each line; the libraries' output goes to stderr.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from edgekit.export.onnx.gptq import Report, Rounding, write_checkpoint


def main() -> None:
    """Read the task from stdin and write the folder that it names."""
    task = json.load(sys.stdin)
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(task["threads"])
    write(task, lambda *done: print(json.dumps(done), file=progress))


def write(task: dict[str, Any], report: Report) -> None:
    """Write the folder `task["out"]` from the Hugging Face folder `task["model"]`, using the folder `task["work"]`."""
    model, out, work = (Path(task[name]) for name in ("model", "out", "work"))
    source = model
    if task["bits"] < 32:
        source = work / "checkpoint"
        rounding = Rounding(task["bits"], task["block_size"], task["int8_modules"])
        write_checkpoint(model, source, rounding, task["calibration"], report)
        for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            if (model / name).is_file():
                shutil.copyfile(model / name, source / name)
    build(source, out, work / "cache", weights(task))


def weights(task: dict[str, Any]) -> dict[str, Any]:
    """The builder's options for the weights that are not rounded yet: the head and the embedding.

    The builder reads a tied embedding from the head's 8-bit weights only when `Gather` is named and the rest is 4-bit. Of
    its methods only `rtn` without zero points writes such a pair in a form that loads (0.18.0).
    """
    if task["bits"] == 32:
        return {"type": "none"}
    return {
        "type": "int4",
        "method": "rtn",
        "block_size": task["block_size"],
        "accuracy_level": task["accuracy_level"],
        "op_types": ["MatMul", "Gather"],
        "overrides": [{"match": {"preset": "last_matmul"}, "type": "int8"}],
    }


def build(source: Path, out: Path, cache: Path, weights: dict[str, Any]) -> None:
    """Run the model builder on the folder `source`; activations are fp32, which every processor supports."""
    from onnxruntime_genai.models import builder

    options = builder.parse_extra_options(
        "", str(source), str(out), None, "cpu", str(cache), ["hf_token=false"],
        target_options={"quant_config": {"io_dtype": "fp32", "weights": weights}},
    )  # fmt: skip
    builder.create_model("", str(source), str(out), None, "cpu", str(cache), **options)


if __name__ == "__main__":
    main()
