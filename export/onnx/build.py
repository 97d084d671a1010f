"""The child process of the ONNX export: rounds the weights, then runs onnxruntime-genai's model builder.

    echo '{"model": ..., "out": ..., ...}' | python -m edgekit.export.onnx.build

Progress goes to stdout, one JSON list `[done, total, unit, activity]` on each line, and at last an object: what was chosen,
or why nothing could be. The libraries' output goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from edgekit.base.errors import StageError
from edgekit.base.memory import keep_for_good
from edgekit.export.onnx.corrections import corrected
from edgekit.export.onnx.fit import fit
from edgekit.export.weights.layerwise import Report, one_torch_thread, quietly
from edgekit.models import accelerator, mapped


def main() -> None:
    """Read the task from stdin and write the folder that it names."""
    task = json.load(sys.stdin)
    progress = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(task["threads"])
    keep_for_good()  # memory is given back after each layer, and what is imported takes half a second to look at
    try:
        said: dict[str, Any] = write(task, lambda *done: print(json.dumps(done), file=progress))
    except StageError as error:
        said = {"error": error.message, "hint": error.hint}
    print(json.dumps(said), file=progress)


def write(task: dict[str, Any], report: Report = quietly) -> dict[str, Any]:
    """Write the folder `task["out"]` from the Hugging Face folder `task["model"]`, using the folder `task["work"]`.

    Returns the form of each rounded weight, and the estimated KL divergence where forms were chosen.
    """
    model, out, work = (Path(task[name]) for name in ("model", "out", "work"))
    network, found = mapped.load(model), {}
    if task["bits"] < 32:
        network = accelerator.place(network)
        with one_torch_thread():
            found = fit(network, task, report)
        network.to("cpu")
        mapped.unmap(network)
    build(model, out, work / "cache", weights(task), network)
    return found


def weights(task: dict[str, Any]) -> dict[str, Any]:
    """The builder's options for weights: edgekit has rounded all of them.

    The builder reads a tied embedding from the head's weights only when `Gather` is named.
    """
    if task["bits"] == 32:
        return {"type": "none"}
    return {"type": "int4", "accuracy_level": task["accuracy_level"], "op_types": ["MatMul", "Gather"]}


def build(model: Path, out: Path, cache: Path, weights: dict[str, Any], network: Any = None) -> None:
    """Run the model builder on `network`, loaded from the folder `model`, with edgekit's corrections.

    Without a network the builder reads the folder itself, without corrections. Activations are fp32, which every processor
    supports.
    """
    from onnxruntime_genai.models import builder

    options = builder.parse_extra_options(
        "", str(model), str(out), None, "cpu", str(cache), ["hf_token=false"],
        target_options={"quant_config": {"io_dtype": "fp32", "weights": weights}},
    )  # fmt: skip
    with nullcontext() if network is None else corrected(builder, network):
        builder.create_model("", str(model), str(out), None, "cpu", str(cache), **options)


if __name__ == "__main__":
    main()
