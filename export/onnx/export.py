"""ONNX folders for onnxruntime-genai, made by its model builder.

The builder's own 4-bit rounding considers weights only, which costs a small model much of its quality
(`benchmarks/onnx_options.md`). The decoder's layers are therefore rounded here by GPTQ and passed to the builder as a
quantized checkpoint. Both run in a child process, so that their output, memory and crashes do not affect this one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import remove
from edgekit.base.errors import CorruptError, StageError
from edgekit.base.events import Emit, Progress
from edgekit.base.parts import missing_part
from edgekit.models.tokenizer import GPT2_PATTERN
from edgekit.registry import ExportContext, Exporter, ExportStep
from edgekit.targets.target import OnnxExport

STAGE = "export.onnx"
# What the result depends on, for the cache: distributions, and the modules that do the work with all they import.
PACKAGES = (
    "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "safetensors", "tokenizers", "torch", "transformers",
)  # fmt: skip
MODULES = ("edgekit.export.onnx.export", "edgekit.export.onnx.build")
BITS = {"int4": 4, "int8": 8, "fp32": 32}
# Architectures that the builder can read from a quantized checkpoint; the tests compare each with torch.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


def refusal(config: dict[str, Any], options: OnnxExport) -> str:
    """Why this model cannot be exported with these options, in one sentence; nothing when it can.

    Raises `MissingPartError` when onnxruntime-genai is not installed.
    """
    architecture = next(iter(config.get("architectures") or []), "an unnamed architecture")
    if architecture not in _buildable():
        return f"onnxruntime-genai's model builder cannot build {architecture}."
    if architecture not in ARCHITECTURES:
        return f"{architecture} is not among the architectures proven in ONNX: {', '.join(ARCHITECTURES)}."
    if "quantization_config" in config:
        return "The model's weights are already quantized; export from its float weights."
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if window and window < config.get("max_position_embeddings", window):
        return f"The model builder does not support this model's attention window of {window} tokens."
    if options.precision != "fp32":
        for name in ("hidden_size", "intermediate_size"):
            if config.get(name, 0) % 16:
                return (
                    f"Rounding in blocks needs a {name} divisible by 16, and this model's is {config[name]}."
                )
    return ""


def _buildable() -> set[str]:
    """The architectures that the installed builder dispatches on, read from its source without importing it."""
    spec = importlib.util.find_spec("onnxruntime_genai")
    if spec is None or spec.origin is None:
        raise missing_part(ModuleNotFoundError(name="onnxruntime_genai"))
    source = (Path(spec.origin).parent / "models" / "builder.py").read_text(encoding="utf-8")
    return set(re.findall(r'config\.architectures\[0\] == "(\w+)"', source))


def steps(options: OnnxExport) -> list[ExportStep]:
    """The one step: a Hugging Face folder in, an onnxruntime-genai folder out."""

    def run(source: Path, out: Path, context: ExportContext, emit: Emit) -> None:
        export(source, out, options, context, emit)

    return [ExportStep(STAGE, options.model_dump(), "onnx", run, PACKAGES, MODULES)]


exporter = Exporter(runtime="onnxruntime", refusal=refusal, steps=steps)


def export(source: Path, out: Path, options: OnnxExport, context: ExportContext, emit: Emit) -> None:
    """Write the Hugging Face folder `source` to the new folder `out`.

    Raises `CorruptError` when `source` lacks a file, and `StageError` with the last line of the builder's output when the
    builder fails.
    """
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        if not (source / name).is_file():
            raise CorruptError(
                f"{source} has no {name}; nothing was written.", "Download or merge the model again."
            )
    config = _read(source / "config.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".onnx-") as work:
        task = {
            "model": str(source.resolve()),
            "out": str(out.resolve()),
            "work": work,
            "bits": BITS[options.precision],
            "int8_modules": options.int8_modules,
            "block_size": options.block_size,
            "accuracy_level": options.accuracy_level,
            "calibration": [list(ids) for ids in context.calibration],
            "threads": context.threads,
        }
        try:
            _build(task, emit)
            _set_stop_ids(out, source, config)
            _set_tokenizer(out, source)
        except BaseException:
            remove(out)
            raise


def _build(task: dict[str, Any], emit: Emit) -> None:
    # The builder writes the commit of the repository that contains its package into the graph, such as the one around a
    # virtual environment; without a repository it writes the commit of its release.
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GIT_DIR": os.devnull,
    }
    command = [sys.executable, "-m", "edgekit.export.onnx.build"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            try:
                json.dump(task, child.stdin)
                child.stdin.close()
                for line in child.stdout:
                    done, total, unit = json.loads(line)
                    emit(Progress(STAGE, done, total, unit, "rounding"))
            except BrokenPipeError:
                pass  # the child ended before it read the task; its exit status says why
            except BaseException:
                child.kill()
                raise
        if child.returncode:
            log.seek(0)
            words = [line.strip() for line in log if line.strip()]
            died = f"killed by signal {-child.returncode}" if child.returncode < 0 else "failed"
            raise StageError(
                f"onnxruntime-genai's model builder {died}: {words[-1] if words else 'no message'}. Nothing was written.",
                "If it was killed, free some memory; or try another precision.",
            )


def _set_stop_ids(out: Path, source: Path, config: dict[str, Any]) -> None:
    """Set the folder's stop ids to the model's: the builder adds the tokenizer's end token to them."""
    generation = source / "generation_config.json"
    stop = _read(generation).get("eos_token_id") if generation.is_file() else None
    genai = _read(out / "genai_config.json")
    genai["model"]["eos_token_id"] = config["eos_token_id"] if stop is None else stop
    _write(out / "genai_config.json", genai)


def _set_tokenizer(out: Path, source: Path) -> None:
    """Replace the folder's tokenizer and chat template, which the builder rewrote through transformers, by the model's own.

    They are the same byte for byte, unless onnxruntime-genai cannot read a rule.
    """
    tokenizer = _read(source / "tokenizer.json")
    if _spell_out_digits(tokenizer):
        _write(out / "tokenizer.json", tokenizer)
    else:
        (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    template = source / "chat_template.jinja"
    if template.is_file():
        (out / "chat_template.jinja").write_bytes(template.read_bytes())


def _spell_out_digits(tokenizer: dict[str, Any]) -> bool:
    """Replace `Digits` before byte-level splitting, which onnxruntime-genai 0.18 ignores, by equivalent patterns."""
    steps = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Digits", "ByteLevel"]:
        return False
    digits, byte_level = steps
    if not digits["individual_digits"] or byte_level["add_prefix_space"] or not byte_level["use_regex"]:
        return False
    tokenizer["pre_tokenizer"]["pretokenizers"] = [
        *({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
          for regex in (r"\p{N}", GPT2_PATTERN)),
        byte_level | {"use_regex": False},
    ]  # fmt: skip
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptError(f"{path} is not JSON: {error}", "Download or merge the model again.") from error
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
