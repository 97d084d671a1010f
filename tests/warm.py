"""Runs commands of edgekit in forks of one process that has imported the large libraries once, and has read edgekit's code.

    python warm.py < ORDERS

Each command still has a process of its own; only the seconds in which torch and transformers are imported are shared, and
those in which the code that the cache's keys contain is parsed (again, once a file is another). An
order is a line of JSON with the arguments, the working folder, and the files for output and errors; the answer is a line
with the exit code, negative for a signal.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import sys
import threading
from typing import Any

from edgekit.base import code

LIBRARIES = (
    "torch", "peft", "transformers.activations", "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto", "safetensors.torch", "gguf",
)  # fmt: skip


def main() -> None:
    """Carry out one order after the other."""
    for name in LIBRARIES:
        importlib.import_module(name)
    code.versions_of(["edgekit"])
    gc.freeze()
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            begin(json.loads(line))
            carry_out()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def begin(order: dict[str, Any]) -> None:
    """Make this process look as if a shell had started it."""
    os.chdir(order["cwd"])
    for place, (name, flags) in enumerate(
        ((os.devnull, os.O_RDONLY), (order["out"], os.O_WRONLY), (order["err"], os.O_WRONLY))
    ):
        os.dup2(os.open(name, flags), place)
    sys.argv = ["edgekit", *order["arguments"]]


def carry_out() -> None:
    """Run the command, and end without taking apart what was imported, which takes longer than many a command."""
    code: Any = 0
    try:
        runpy.run_module("edgekit.cli", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code or 0
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
