"""GGUF files for llama.cpp: a float file written tensor by tensor, then quantized by llama.cpp itself."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgekit import registry
from edgekit.base.artifacts import sha256_file, write_json
from edgekit.base.errors import CorruptError, UnsupportedError
from edgekit.base.events import Alert, Emit, Event, Progress
from edgekit.containers.gguf import read_gguf
from edgekit.containers.safetensors import ADAPTER_WEIGHTS
from edgekit.export.gguf import converter
from edgekit.export.gguf.convert import PHI3, convert
from edgekit.export.gguf.families import (
    ALREADY_QUANTIZED,
    FAMILIES,
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
from edgekit.export.gguf.stored import file_name_map
from edgekit.export.gguf.vocab import UNWRITTEN, Vocabulary, read_vocabulary
from edgekit.export.weights.rows import Rows
from edgekit.models.source import MERGED, PROVENANCE, parameter_count, read_config
from edgekit.registry import ExportContext, Exporter, ExportStep
from edgekit.targets.target import GgufExport

STAGE = "export.gguf"
# What the results depend on, for the cache: distributions, and the modules that do the work with all they import.
PACKAGES = ("gguf", "numpy", "safetensors", "sentencepiece", "tokenizers", "torch", "transformers")
MODULES = ("edgekit.export.gguf.write", "edgekit.export.gguf.convert_process")
QUANTIZE = "quantize.gguf"
QUANTIZE_PACKAGES = (*PACKAGES, "llama-cpp-python")
QUANTIZE_MODULES = (
    "edgekit.export.gguf.quantize", "edgekit.export.gguf.imatrix", "edgekit.export.gguf.stream_process",
    "edgekit.export.gguf.trial", "edgekit.export.gguf.convert_process",  # writes the float file of a tokenizer that edgekit cannot write
)  # fmt: skip
LARGEST_FLOAT_FILE_MIB = 1024
PLAN = "plan.json"  # beside the quantized file: what `fit` returned
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DERIVED = ".rotary_emb.inv_freq"  # old checkpoints hold it; it can be derived from the config
MIB = 2**20


def refusal(config: dict[str, Any], options: GgufExport) -> str:
    """Why this model cannot be exported with these options, in one sentence; nothing when it can.

    Whether llama.cpp can reproduce the tokenizer depends on the tokenizer's files: `write` checks them before any tensor.
    """
    if architecture(config) in FAMILIES:
        fault = next(faults(config), "")
    else:
        fault = _refusal_by_converter(config, options)
    if fault:
        return fault
    if options.token_embedding_type:
        block = gguf.GGML_QUANT_SIZES[tensor_type(options.token_embedding_type)][0]
        if config.get("hidden_size", 0) % block:
            return (
                f"token_embedding_type {options.token_embedding_type} needs rows of a multiple of {block} weights, "
                f"and this model's have {config['hidden_size']}."
            )
    return ""


def _refusal_by_converter(config: dict[str, Any], options: GgufExport) -> str:
    name, folder = architecture(config), options.llama_cpp or converter.kept()
    if folder is None:
        return (
            f"{next(faults(config))} llama.cpp's own converter may be able to, but it is not on this machine. "
            f"Type `{converter.SETUP}`, then run this again."
        )
    if not (folder / converter.SCRIPT).is_file():
        return f"{folder} is not a llama.cpp checkout: it has no {converter.SCRIPT}."
    known = converter.architectures(folder)
    if known and name not in known:
        return f"Neither edgekit nor llama.cpp's converter can write {name} as GGUF."
    return ALREADY_QUANTIZED if config.get("quantization_config") else ""


def steps(options: GgufExport) -> list[ExportStep]:
    """A float file, then the quantized one; for F32 the float file is the result.

    The float file shows which of the two steps loses what. That of a large model is left out: see `streamed`.
    """

    def write_floats(source: Path, out: Path, context: ExportContext, emit: Emit) -> None:
        folder = options.llama_cpp or converter.kept()
        if folder is None or architecture(read_config(source)) in FAMILIES:
            try:
                write(source, out, emit)
                return
            except UnsupportedError as error:  # of the tokenizer; all else was checked by `refusal`
                if folder is None:
                    raise
                emit(
                    Alert(
                        "warning", error.message.replace(UNWRITTEN, "llama.cpp's converter writes the file.")
                    )
                )
        convert(folder, source, out, _origin_writer(source))

    def quantize_floats(source: Path, out: Path, context: ExportContext, emit: Emit) -> None:
        if with_feedback(options, context):
            try:
                how = "trial" if context.trial else "fit"
                fitted = registry.load("stages", how)(out, options, context, _told_as(QUANTIZE, emit))
                write_json(out.parent / PLAN, asdict(fitted))
                return
            except UnsupportedError:  # of the tokenizer: llama.cpp's converter wrote the float file, or will
                emit(
                    Alert(
                        "warning",
                        "The weights are rounded by llama.cpp, because its converter writes this model's file.",
                    )
                )
        if context.trial:
            emit(
                Alert(
                    "warning",
                    "No files are tried: llama.cpp rounds the weights of this model, by the type of the file.",
                    "quantize.max_kld_nats and quantize.calibration_trial have no effect; the gates judge the file.",
                )
            )
        if not source.is_dir():
            quantize_file(source, out, context, emit)
            return
        try:
            tensors = {tensor.name: tensor.shape[-1] for tensor in read_model(source).tensors}
        except UnsupportedError:  # of the tokenizer: llama.cpp's converter writes the float file
            with tempfile.TemporaryDirectory(dir=out.parent) as work:
                floats = Path(work) / "model.f32.gguf"
                write_floats(source, floats, context, emit)
                quantize_file(floats, out, context, emit)
            return
        weights = _importance(tensors, context, emit) if uses_importance(options.type) else None
        registry.load("stages", "stream")(
            source, out, options, imatrix=weights, threads=context.threads, emit=_told_as(QUANTIZE, emit)
        )

    def quantize_file(floats: Path, out: Path, context: ExportContext, emit: Emit) -> None:
        weights = _importance_of(floats, context, emit) if uses_importance(options.type) else None
        quantize(floats, out, options, imatrix=weights, threads=context.threads, emit=emit)

    single = is_float_file(options)
    given = {"converter": converter.digest(options.llama_cpp)} if options.llama_cpp else {}
    floats = ExportStep(
        STAGE, given, "model.gguf" if single else "model.f32.gguf", write_floats, PACKAGES, MODULES
    )
    if single:
        return [floats]
    floats = replace(floats, left_out=streamed)
    kinds = options.model_dump(include={"type", "token_embedding_type", "tensor_types"})
    return [
        floats,
        ExportStep(
            QUANTIZE, {**given, **kinds}, "model.gguf", quantize_floats, QUANTIZE_PACKAGES, QUANTIZE_MODULES
        ),
    ]


def with_feedback(options: GgufExport, context: ExportContext) -> bool:
    """Whether edgekit rounds the weights itself: it needs calibration text, and an architecture whose tensors it knows."""
    return (
        context.quantize is not None
        and context.quantize.method == "feedback"
        and bool(context.calibration or context.texts)
        and architecture(read_config(context.model)) in FAMILIES
        and not options.is_float
    )


def streamed(config: Mapping[str, Any]) -> bool:
    """Whether the quantized file is written from the folder itself, because a float file would take too much.

    It takes twice the disk of a model in 16 bits, and its proof as much memory.
    """
    return architecture(config) in FAMILIES and 4 * parameter_count(config) > LARGEST_FLOAT_FILE_MIB * MIB


def _told_as(stage: str, emit: Emit) -> Emit:
    """An `emit` that shows progress as that of `stage`."""

    def renamed(event: Event) -> None:
        emit(replace(event, stage=stage) if isinstance(event, Progress) else event)

    return renamed


def is_float_file(options: GgufExport) -> bool:
    """Whether these options ask for 32-bit floats and nothing else, which needs no quantizer."""
    return options.type == "F32" and not options.token_embedding_type and not options.tensor_types


def incomparable(config: dict[str, Any], options: GgufExport) -> str:
    """Why files of this model cannot be compared with it without running them, or an empty text."""
    return refusal(config, options) if architecture(config) in FAMILIES else ""


exporter = Exporter("llama.cpp", refusal, steps, incomparable)


def _importance_of(floats: Path, context: ExportContext, emit: Emit) -> dict[str, NDArray[np.float32]] | None:
    """The importance matrix for the float file `floats`, where there are rows to compute it on."""
    layout = read_gguf(floats)
    names = file_name_map(layout)
    if names is None and context.calibration:
        emit(
            Alert(
                "warning",
                f"{floats.name} is quantized without an importance matrix, because the names of its tensors are unknown.",
            )
        )
        return None
    columns = {name: tensor.shape[0] for name, tensor in layout.tensors.items()}
    return _importance(columns, context, emit, names)


def _importance(
    columns: Mapping[str, int],
    context: ExportContext,
    emit: Emit,
    names: gguf.TensorNameMap | None = None,
) -> dict[str, NDArray[np.float32]] | None:
    """The importance matrix for tensors with that many `columns`, where there are rows to compute it on."""
    if not context.calibration:
        return None
    from edgekit.export.gguf.imatrix import importance

    found = importance(context.model, context.calibration, emit, names=names)
    return {name: values for name, values in found.items() if columns.get(name) == values.size}


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
    check_streamable(raw)
    config, family = typed(raw), FAMILIES[architecture(raw)]
    vocabulary = read_vocabulary(source, config.vocab_size)
    origin = _read_origin(source)
    if origin and adapter:
        origin[MERGED] = sha256_file(adapter / ADAPTER_WEIGHTS)
    return Model(
        source, raw, config, family, vocabulary, read_tensors(source, config, family, adapter), origin
    )


def check_streamable(config: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` for a model that edgekit's own writer cannot write."""
    if fault := next(faults(config), ""):
        hint = "Choose another model or another export format."
        if architecture(config) not in FAMILIES:
            setup = "" if converter.kept() else f"Type `{converter.SETUP}`. Then "
            hint = f"{setup}`edgekit export` writes it with llama.cpp's converter, which needs disk for a float file."
        raise UnsupportedError(f"{fault} {UNWRITTEN}", hint)


def metadata(model: Model, out: Path) -> gguf.GGUFWriter:
    """A writer for the new file `out` with all metadata of a float file, and no tensors yet."""
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[model.family.arch])
    _write_origin(writer, model.origin, model.raw, model.vocabulary.tokens.strips)
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
    stored = Rows(source)
    weights = stored.shapes
    merged: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {}
    if adapter:
        from edgekit.export.weights.merge import merged_tensors  # which imports torch

        merged = merged_tensors(source, weights, adapter)
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
        shape = weights[key]
        tensors.append(Tensor(name, shape, partial(rows, key), shape[0] if key in merged else head))
    for name, factors in rope_factors(config).items():
        tensors.append(Tensor(name, factors.shape, partial(entries, factors), 1))
    return sorted(tensors, key=_place)


def entries(values: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
    """Entries `start` to `stop` of a tensor that is in memory."""
    return values[start:stop]


def _read_origin(source: Path) -> dict[str, Any]:
    file = source / PROVENANCE
    origin: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return origin


def _origin_writer(source: Path) -> gguf.GGUFWriter:
    """A writer that holds the provenance of the folder and no file."""
    writer = gguf.GGUFWriter(None, "")
    _write_origin(writer, _read_origin(source), read_config(source))
    return writer


def _place(tensor: Tensor) -> list[str | int]:
    """A sort key that puts layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in tensor.name.split(".")]


def _write_origin(
    writer: gguf.GGUFWriter, origin: dict[str, Any], config: dict[str, Any], strips: bool = False
) -> None:
    """Write the file's type, name, licence and provenance."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    name = Path(origin.get("base_model") or config.get("_name_or_path") or "").name
    if strips != bool(PHI3.search(name)):
        name = "Phi-3" if strips else ""
    if name:
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
