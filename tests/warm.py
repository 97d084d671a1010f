"""Runs commands of edgekit in forks of one process that has imported the large libraries once.

    python warm.py < ORDERS

Each command still has a process of its own; only the seconds in which torch and transformers are imported are shared. An
order is a line of JSON with the arguments, the working folder, and the files for output and errors; the answer is a line
with the exit code, negative for a signal.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
from typing import Any

LIBRARIES = (
    "torch", "peft", "transformers.activations", "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto", "safetensors.torch", "gguf",
)  # fmt: skip


def main() -> None:
    """Carry out one order after the other."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            begin(json.loads(line))
            runpy.run_module("edgekit.cli", run_name="__main__", alter_sys=True)
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def begin(order: dict[str, Any]) -> None:
    """Make this process look as if a shell had started it."""
    os.chdir(order["cwd"])
    for place, (name, flags) in enumerate(
        ((os.devnull, os.O_RDONLY), (order["out"], os.O_WRONLY), (order["err"], os.O_WRONLY))
    ):
        os.dup2(os.open(name, flags), place)
    sys.argv = ["edgekit", *order["arguments"]]


if __name__ == "__main__":
    main()
