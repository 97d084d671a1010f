"""ONNX folders for onnxruntime-genai, made by its model builder.

The builder's own 4-bit rounding considers weights only, which costs a small model much of its quality
(`benchmarks/onnx_options.md`). The decoder's layers are therefore rounded here by GPTQ and passed to the builder as a
quantized checkpoint. Both run in a child process, so that their output, memory and crashes do not affect this one.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import remove
from edgekit.base.child import SAFE_PATH
from edgekit.base.errors import ConfigError, CorruptError, StageError
from edgekit.base.events import Emit, Progress, ignore
from edgekit.base.parts import missing_part
from edgekit.export.onnx.text import adapt
from edgekit.export.weights.folder import places_of
from edgekit.models.tokenizer import load_tokenizer
from edgekit.registry import ExportContext, Exporter, ExportStep
from edgekit.targets.target import OnnxExport

STAGE = "export.onnx"
# What the result depends on, for the cache: distributions, and the modules that do the work with all they import.
PACKAGES = (
    "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "safetensors", "scipy", "tokenizers", "torch",
    "transformers",
)  # fmt: skip
MODULES = ("edgekit.export.onnx.export", "edgekit.export.onnx.build")
BITS = {"int4": 4, "int8": 8, "fp32": 32}
TEXTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)  # the largest files beside the graph
SETTINGS = 4096  # bytes of the other files, at most
KNOWN_LAYERS = {"full_attention", "sliding_attention", "attention", "conv"}


def refusal(config: dict[str, Any], options: OnnxExport) -> str:
    """Why this model cannot be exported with these options, in one sentence; nothing when it can.

    Raises `MissingPartError` when onnxruntime-genai is not installed.
    """
    return next(_refusals(config, options), "")


def _refusals(config: Mapping[str, Any], options: OnnxExport) -> Iterator[str]:
    architecture = next(iter(config.get("architectures") or []), "an unnamed architecture")
    if architecture not in buildable():
        yield f"onnxruntime-genai's model builder cannot build {architecture}."
    if not architecture.endswith("ForCausalLM"):
        yield f"{architecture} is not a model of text alone, and edgekit exports only those to ONNX."
    if "quantization_config" in config:
        yield "The model's weights are already quantized; export from its float weights."
    if any(config.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
        yield "edgekit cannot round the weights of a mixture of experts for ONNX."
    if other := sorted(set(config.get("layer_types") or ()) - KNOWN_LAYERS):
        yield f"The model builder cannot build layers of the type {other[0]} for a processor."
    if config.get("clip_qkv"):
        yield "The model builder leaves out the limits of queries, keys and values (clip_qkv)."
    if fault := _rope_fault(config):
        yield fault
    if options.precision != "fp32":
        for name in ("hidden_size", "intermediate_size"):
            if config.get(name, 0) % 16:
                yield f"Rounding in blocks needs a {name} divisible by 16, and this model's is {config[name]}."


def _rope_fault(config: Mapping[str, Any]) -> str:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "dynamic" and not rope.get("alpha"):
        return (
            "A rope scaling of type 'dynamic' changes with the length of the text, which ONNX cannot express."
        )
    if config.get("hidden_size") and config.get("num_attention_heads"):
        share = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
        head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        if int(head * share) % 16:
            return f"onnxruntime turns a multiple of 16 columns of each head, and this model {int(head * share)} (rope)."
    return ""


@functools.cache
def buildable() -> frozenset[str]:
    """The architectures that the installed builder dispatches on, read from its syntax tree without importing it."""
    spec = importlib.util.find_spec("onnxruntime_genai")
    if spec is None or spec.origin is None:
        raise missing_part(ModuleNotFoundError(name="onnxruntime_genai"))
    source = (Path(spec.origin).parent / "models" / "builder.py").read_text(encoding="utf-8")
    return frozenset(
        side.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare) and "architectures" in ast.unparse(node.left)
        for side in ast.walk(node)
        if isinstance(side, ast.Constant) and isinstance(side.value, str)
    )


def steps(options: OnnxExport) -> list[ExportStep]:
    """The one step: a Hugging Face folder in, an onnxruntime-genai folder out."""

    def run(source: Path, out: Path, context: ExportContext, emit: Emit) -> None:
        export(source, out, options, context, emit)

    return [ExportStep(STAGE, options.model_dump(), "onnx", run, PACKAGES, MODULES)]


exporter = Exporter(runtime="onnxruntime", refusal=refusal, steps=steps)


def export(
    source: Path, out: Path, options: OnnxExport, context: ExportContext, emit: Emit = ignore
) -> dict[str, Any]:
    """Write the Hugging Face folder `source` to the new folder `out`.

    With a size in `options` the result tells the form of each weight (`types`) and the estimated KL divergence (`cost`).
    Raises `ConfigError` for a size without calibration text, `CorruptError` when `source` lacks a file, and `StageError` when no
    bits take so little, and with the last line of the builder's output when the builder fails.
    """
    if options.is_sized and not (context.calibration or context.texts):
        raise ConfigError(
            "A size of the ONNX folder needs text that says which errors matter, and there is none. Nothing was started.",
            "Set quantize.calibration_rows above 0, or give no size.",
        )
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
            "int8_modules": options.at_8_bits,
            "block_size": options.block_size,
            "accuracy_level": options.accuracy_level,
            "texts": {
                "rows": [list(ids) for ids in context.calibration],
                "text": [list(ids) for ids in context.texts],
            },
            "max_bytes": _max_bytes(source, options, config),
            "threads": context.threads,
        }
        try:
            chosen = _build(task, emit)
            _set_stop_ids(out, source, config)
            _set_tokenizer(out, source)
        except BaseException:
            remove(out)
            raise
    return chosen


def _max_bytes(source: Path, options: OnnxExport, config: Mapping[str, Any]) -> float | None:
    """Largest size of the graph and its weights in a folder of the size that `options` ask for; None without one."""
    if not options.is_sized:
        return None
    tied = config.get("tie_word_embeddings", True)
    stored = {name: place.tensor.shape for name, place in places_of(source).items()}
    weights = sum(prod(shape) for name, shape in stored.items() if not (tied and name == "lm_head.weight"))
    limit = options.max_bytes(weights)
    texts = sum((source / name).stat().st_size for name in TEXTS if (source / name).is_file())
    return None if limit is None else limit - texts - SETTINGS


def _build(task: dict[str, Any], emit: Emit) -> dict[str, Any]:
    # The builder writes the commit of the repository that contains its package into the graph, such as the one around a
    # virtual environment; without a repository it writes the commit of its release.
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GIT_DIR": os.devnull,
        **SAFE_PATH,
    }
    command = [sys.executable, "-m", "edgekit.export.onnx.build"]
    chosen: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        ) as child:
            assert child.stdin is not None and child.stdout is not None
            try:
                json.dump(task, child.stdin)
                child.stdin.close()
                for line in child.stdout:
                    match json.loads(line):
                        case [done, total, unit, activity]:
                            emit(Progress(STAGE, done, total, unit, activity))
                        case {"error": message, "hint": hint}:
                            raise StageError(message, hint)
                        case dict(found):
                            chosen = found
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
    return chosen


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
    if adapt(tokenizer, load_tokenizer(source).added_tokens_decoder):
        _write(out / "tokenizer.json", tokenizer)
    else:
        (out / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    template = source / "chat_template.jinja"
    if template.is_file():
        (out / "chat_template.jinja").write_bytes(template.read_bytes())


def _read(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptError(f"{path} is not JSON: {error}", "Download or merge the model again.") from error
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
