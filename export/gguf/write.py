"""GGUF files for llama.cpp: a float file written tensor by tensor, then quantized by llama.cpp itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgekit.base.artifacts import digest_of, sha256_file
from edgekit.base.errors import CorruptError, StageError, UnsupportedError
from edgekit.base.events import Alert, Emit, Progress
from edgekit.export.gguf.families import (
    FAMILIES,
    ROPE_FREQS,
    Family,
    architecture,
    faults,
    head_size,
    name_map,
    rope_factors,
    to_gguf,
    typed,
    write_parameters,
)
from edgekit.export.gguf.quantize import quantize, tensor_type, uses_importance
from edgekit.export.gguf.vocab import Vocabulary, read_vocabulary
from edgekit.models.source import MERGED, PROVENANCE, read_config
from edgekit.registry import ExportContext, Exporter, ExportStep
from edgekit.targets.target import GgufExport

STAGE = "export.gguf"
# What the results depend on, for the cache: distributions, and the modules that do the work with all they import.
PACKAGES = ("gguf", "numpy", "safetensors", "tokenizers", "torch", "transformers")
MODULES = ("edgekit.export.gguf.write",)
QUANTIZE_PACKAGES = ("gguf", "llama-cpp-python", "numpy", "torch", "transformers")
QUANTIZE_MODULES = ("edgekit.export.gguf.quantize", "edgekit.export.gguf.imatrix")
CONVERTER = "convert_hf_to_gguf.py"
CONVERTER_PARTS = ("conversion", "gguf-py")  # folders of the checkout that the converter imports from
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DERIVED = ".rotary_emb.inv_freq"  # old checkpoints hold it; it can be derived from the config
MIB = 2**20


def refusal(config: dict[str, Any], options: GgufExport) -> str:
    """Why this model cannot be exported with these options, in one sentence; nothing when it can.

    Whether llama.cpp can reproduce the tokenizer depends on the tokenizer's files: `write` checks them before any tensor.
    """
    if architecture(config) not in FAMILIES:
        if not options.llama_cpp:
            return f"{next(faults(config))} A llama.cpp checkout may be able to: name its folder with --llama-cpp."
        found = (options.llama_cpp / CONVERTER).is_file()
        return "" if found else f"{options.llama_cpp} is not a llama.cpp checkout: it has no {CONVERTER}."
    if fault := next(faults(config), ""):
        return fault
    if options.token_embedding_type:
        block = gguf.GGML_QUANT_SIZES[tensor_type(options.token_embedding_type)][0]
        if config["hidden_size"] % block:
            return (
                f"token_embedding_type {options.token_embedding_type} needs rows of a multiple of {block} weights, "
                f"and this model's have {config['hidden_size']}."
            )
    return ""


def steps(options: GgufExport) -> list[ExportStep]:
    """A float file, then the quantized one; for F32 the float file is the result."""

    def write_floats(source: Path, out: Path, context: ExportContext, emit: Emit) -> None:
        if options.llama_cpp and architecture(read_config(source)) not in FAMILIES:
            convert(options.llama_cpp, source, out)
        else:
            write(source, out, emit)

    def quantize_floats(source: Path, out: Path, context: ExportContext, emit: Emit) -> None:
        weights = _importance(context, emit) if uses_importance(options.type) else None
        quantize(source, out, options, imatrix=weights, threads=context.threads, emit=emit)

    single = is_float_file(options)
    converter = {"converter": converter_digest(options.llama_cpp)} if options.llama_cpp else {}
    floats = ExportStep(
        STAGE, converter, "model.gguf" if single else "model.f32.gguf", write_floats, PACKAGES, MODULES
    )
    if single:
        return [floats]
    kinds = options.model_dump(include={"type", "token_embedding_type", "tensor_types"})
    return [
        floats,
        ExportStep(
            "quantize.gguf", kinds, "model.gguf", quantize_floats, QUANTIZE_PACKAGES, QUANTIZE_MODULES
        ),
    ]


def is_float_file(options: GgufExport) -> bool:
    """Whether these options ask for 32-bit floats and nothing else, which needs no quantizer."""
    return options.type == "F32" and not options.token_embedding_type and not options.tensor_types


exporter = Exporter(runtime="llama.cpp", refusal=refusal, steps=steps)


def _importance(context: ExportContext, emit: Emit) -> dict[str, NDArray[np.float32]] | None:
    if not context.calibration:
        return None
    if (name := architecture(read_config(context.model))) not in FAMILIES:
        emit(
            Alert(
                "warning",
                f"{name} is quantized without an importance matrix, because edgekit does not know its tensor names in GGUF.",
            )
        )
        return None
    from edgekit.export.gguf.imatrix import importance

    return importance(context.model, context.calibration, emit)


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file, in floats, read when it is written."""

    name: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], NDArray[np.float32]]
    """Entries `start` to `stop` of the first axis; both are multiples of `group`, or the end."""
    group: int

    @property
    def bytes(self) -> int:
        """Size in a file of floats."""
        return 4 * prod(self.shape)

    def load(self) -> NDArray[np.float32]:
        """All of it."""
        return self.rows(0, self.shape[0])


@dataclass(frozen=True)
class Model:
    """A checked Hugging Face folder and the contents of its GGUF file; the weights are still on disk."""

    source: Path
    raw: dict[str, Any]
    config: Any
    family: Family
    vocabulary: Vocabulary
    tensors: list[Tensor]
    origin: dict[str, Any]
    """The provenance from `edgekit.json`, when the folder has one."""


def read_model(source: Path, adapter: Path | None = None) -> Model:
    """The Hugging Face folder `source`, with the LoRA folder `adapter` merged in when there is one.

    Raises `UnsupportedError` for a model or a tokenizer that llama.cpp cannot reproduce, `CorruptError` for damaged or
    missing weights, and as `merge.plan_edits` does for an adapter.
    """
    raw = read_config(source)
    if fault := next(faults(raw), ""):
        raise UnsupportedError(
            f"{fault} No GGUF file was written.", "Choose another model or another export format."
        )
    config, family = typed(raw), FAMILIES[architecture(raw)]
    vocabulary = read_vocabulary(source, config.vocab_size)
    file = source / PROVENANCE
    origin = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if origin and adapter:
        from edgekit.export.weights.merge import ADAPTER_WEIGHTS

        origin[MERGED] = sha256_file(adapter / ADAPTER_WEIGHTS)
    return Model(
        source, raw, config, family, vocabulary, read_tensors(source, config, family, adapter), origin
    )


def metadata(model: Model, out: Path) -> gguf.GGUFWriter:
    """A writer for the new file `out` with all metadata of a float file, and no tensors yet."""
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[model.family.arch])
    _write_origin(writer, model.origin, model.raw)
    write_parameters(writer, model.config)
    model.vocabulary.write(writer)
    return writer


def write(source: Path, out: Path, emit: Emit) -> None:
    """Write the Hugging Face folder `source` as one GGUF file of 32-bit floats, one tensor in memory at a time.

    The same folder gives the same bytes. Raises as `read_model` does, and `CorruptError` for weights that cannot be
    read; then there is no `out`.
    """
    model = read_model(source)
    writer = metadata(model, out)
    try:
        for tensor in model.tensors:
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total, done = sum(tensor.bytes for tensor in model.tensors), 0
        for tensor in model.tensors:
            writer.write_tensor_data(np.ascontiguousarray(tensor.load()))
            done += tensor.bytes
            emit(Progress(STAGE, done / MIB, total / MIB, "MiB", tensor.name))
    except BaseException:
        writer.close()
        out.unlink(missing_ok=True)
        raise
    writer.close()


def read_tensors(source: Path, config: Any, family: Family, adapter: Path | None = None) -> list[Tensor]:
    """The file's tensors, layer by layer, found in the folder's safetensors files.

    Raises `CorruptError` for a tensor without a place in GGUF (nothing is left out silently), for a missing embedding
    or head, and for a head that differs from the embedding it is said to be tied to.
    """
    from edgekit.export.weights.merge import merged_tensors
    from edgekit.export.weights.rows import Rows

    stored = Rows(source)
    weights = stored.weights
    merged = merged_tensors(source, weights, adapter) if adapter else {}
    left_out = {key for key in weights if key.endswith(DERIVED)}
    if config.tie_word_embeddings and HEAD in weights:
        if not stored.equal(HEAD, EMBEDDING):
            raise CorruptError(
                f"{source / 'config.json'} ties the head to the embedding, and the weights hold two different ones.",
                "Set tie_word_embeddings to false if the head was trained by itself.",
            )
        left_out.add(HEAD)
    needed = [EMBEDDING] if config.tie_word_embeddings else [EMBEDDING, HEAD]
    if missing := [key for key in needed if key not in weights]:
        raise CorruptError(
            f"The weights in {source} lack {', '.join(missing)}.", "Fetch or merge the model again."
        )

    head = head_size(config)

    def rows(key: str, start: int, stop: int) -> NDArray[np.float32]:
        values = stored.read(key, start, stop)
        if key in merged:
            values = merged[key](values)
        heads = (stop - start) // head  # of q and k, whose rows come in whole heads
        return to_gguf(
            key, values, SimpleNamespace(num_attention_heads=heads, num_key_value_heads=heads), family
        )

    names = name_map(config, family)
    tensors: list[Tensor] = []
    for key in weights.keys() - left_out:
        if (name := names.get_name(key, try_suffixes=(".weight", ".bias"))) is None:
            raise CorruptError(
                f"The weights in {source} hold {key}, for which this architecture's GGUF file has no tensor.",
                "Merge adapters into the weights first, and remove tensors that the architecture does not use.",
            )
        shape = weights.layout[key][1]
        tensors.append(Tensor(name, shape, partial(rows, key), shape[0] if key in merged else head))
    if (factors := rope_factors(config)) is not None:
        tensors.append(Tensor(ROPE_FREQS, factors.shape, lambda start, stop: factors[start:stop], 1))
    return sorted(tensors, key=_place)


def _place(tensor: Tensor) -> list[str | int]:
    """A sort key that puts layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in tensor.name.split(".")]


def _write_origin(writer: gguf.GGUFWriter, origin: dict[str, Any], config: dict[str, Any]) -> None:
    """Write the file's type, name, licence and provenance."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    name = Path(origin.get("base_model") or config.get("_name_or_path") or "").name
    if name and not re.search(
        "phi-?3", name, re.IGNORECASE
    ):  # llama.cpp splits text in another way for such names
        writer.add_name(name)
    if origin.get("license"):
        writer.add_license(origin["license"])
    if origin.get("base_model"):
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, origin["base_model"])
    for key, value in sorted(origin.items()):
        writer.add_string(
            f"edgekit.{key}", value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        )


def converter_digest(checkout: Path) -> str:
    """The digest of the Python files that the converter of a llama.cpp checkout consists of."""
    files = [file for part in CONVERTER_PARTS for file in sorted((checkout / part).rglob("*.py"))]
    return digest_of(
        {
            file.relative_to(checkout).as_posix(): sha256_file(file)
            for file in [checkout / CONVERTER, *files]
            if file.is_file()
        }
    )


def convert(checkout: Path, source: Path, out: Path) -> None:
    """Write `source` as a float GGUF file with the converter of a llama.cpp checkout.

    Raises `StageError` with the converter's last line when it fails.
    """
    command = [
        sys.executable,
        str(checkout / CONVERTER),
        str(source),
        "--outfile",
        str(out),
        "--outtype",
        "f32",
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if result.returncode or not out.is_file():
        out.unlink(missing_ok=True)
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise StageError(
            f"llama.cpp's converter failed: {lines[-1]}. No GGUF file was written.",
            f"Run it by hand to see the whole output: python {checkout / CONVERTER} {source}",
        )
