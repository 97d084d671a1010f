"""Streaming export: from safetensors, and an adapter, straight to the quantized GGUF file.

Pieces of a few rows are read, merged, converted and quantized on several threads and written in order, so memory holds
only some pieces, and the disk only the result. The file equals, byte for byte, the one that `merge`, `gguf.write` and
`quantize` make one after the other.

llama.cpp decides which type each tensor gets. To find out, the file is first written with the header of the float file
and, behind it, a hole as long as the weights; llama.cpp then reports the types in a dry run. It maps the file and reads
the header only, so this takes no memory and, on a file system with sparse files, no disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgekit.base.artifacts import removed_on_failure
from edgekit.base.errors import CorruptError, StageError
from edgekit.base.events import Alert, Emit, Progress, ignore
from edgekit.containers.safetensors import ADAPTER_WEIGHTS
from edgekit.export.gguf.families import head_size, typed
from edgekit.export.gguf.ggml import library
from edgekit.export.gguf.quantize import choose_types, file_type, uses_importance
from edgekit.export.gguf.stored import FEEDBACK, ROUNDING
from edgekit.export.gguf.write import (
    MIB,
    STAGE,
    Model,
    Tensor,
    check_streamable,
    entries,
    is_float_file,
    metadata,
    read_model,
)
from edgekit.export.weights.folder import places_of
from edgekit.targets.target import GgufExport

PIECE = 1 << 20  # weights that one thread takes at a time
EMBEDDING = "token_embd.weight"
# Upper bounds for `peak_memory`, measured on Linux with Python 3.11 and the pinned packages.
BASE = 144 * MIB  # Python with transformers and without torch, and the process that started it
MERGING = 320 * MIB  # torch and peft
TOKEN = 3072  # one token of the vocabulary: its text, merge and score in transformers, which needs most for Gemma, and here
WEIGHT = 12  # one weight of a piece: as stored, as a float, and as written
MERGED = 16  # one weight of a merged tensor: as stored, its low-rank product, its permutation, and the tensor before it
F32 = gguf.GGMLQuantizationType.F32
ALIGNMENT: int = gguf.GGUF_DEFAULT_ALIGNMENT

Floats = NDArray[np.float32]
Types = Mapping[str, gguf.GGMLQuantizationType]
Job = Callable[[], NDArray[Any]]


def stream(
    source: Path,
    out: Path,
    options: GgufExport,
    *,
    adapter: Path | None = None,
    imatrix: Mapping[str, Floats] | None = None,
    threads: int = 2,
    emit: Emit = ignore,
) -> None:
    """Write the Hugging Face folder `source`, with the LoRA folder `adapter` merged in, as the new GGUF file `out`.

    `options` is a target's `GgufExport`; `imatrix` holds for each tensor name the weight of each input column,
    `(columns,)`. The bytes do not depend on `threads`. Raises `UnsupportedError` for what llama.cpp cannot reproduce,
    `CorruptError` for damaged weights, `ConfigError` for an adapter of another base and `StageError` when llama.cpp
    refuses; then there is no `out`.
    """
    _write(read_model(source, adapter), out, options, imatrix or {}, {}, threads, emit)


def assemble(
    source: Path, out: Path, options: GgufExport, rounded: Path, *, threads: int = 2, emit: Emit = ignore
) -> None:
    """Write the file as `stream` does, but of the tensors in the folder `rounded` the rows that `round_model` packed.

    The file says that it holds them.
    """
    _write(read_model(source), out, options, {}, packed_rows(rounded), threads, emit)


def _write(
    model: Model,
    out: Path,
    options: GgufExport,
    imatrix: Mapping[str, Floats],
    packed: Mapping[str, Any],
    threads: int,
    emit: Emit,
) -> None:
    tensors = {tensor.name: tensor for tensor in model.tensors}
    types: Types = dict.fromkeys(tensors, F32)
    with removed_on_failure(out):
        if not is_float_file(options):
            types, warning = choose(model, out, options, imatrix)
            if warning:
                emit(warning)
        type = None if is_float_file(options) else options.type
        _write_header(out, model, types, type, feedback=bool(packed))
        with out.open("ab") as file, ThreadPoolExecutor(threads) as pool:
            size = {name: _bytes(tensor, types[name]) for name, tensor in tensors.items()}
            total, done = sum(size.values()), 0
            jobs = _jobs([tensors[name] for name in types], types, imatrix, packed)
            for name, data in _in_order(pool, jobs, threads + 1):
                data.tofile(file)
                if name:
                    _pad(file)
                    done += size[name]
                    emit(Progress(STAGE, done / MIB, total / MIB, "MiB", name))


def choose(
    model: Model, out: Path, options: GgufExport, imatrix: Mapping[str, Floats] | None = None
) -> tuple[Types, Alert | None]:
    """The type that llama.cpp gives each tensor, in the order of its file, and a warning; `out` is written for it."""
    _write_hollow(out, model, dict.fromkeys((tensor.name for tensor in model.tensors), F32))
    chosen = choose_types(out, options, imatrix)
    return chosen.types, chosen.warning


def hollow(source: Path, out: Path, options: GgufExport) -> None:
    """Write the file that `stream` would write, with a hole in place of the weights: it decodes as fast as the real one."""
    model = read_model(source)
    with removed_on_failure(out):
        types, _ = choose(model, out, options)
        _write_hollow(out, model, types, options.type)


def layout(source: Path, options: GgufExport, work: Path) -> tuple[dict[str, str], int]:
    """The type of each tensor of the file that `stream` would write, and the bytes of all that is no quantized weight.

    They are those of a file with `rounded` tensors. The folder `work` is for a temporary file without data.
    """
    model, file = read_model(source), work / "layout.gguf"
    types, _ = choose(model, file, options)
    _write_header(file, model, types, options.type, feedback=True)
    floats = sum(_padded(tensor.bytes) for tensor in model.tensors if types[tensor.name] is F32)
    fixed = file.stat().st_size + floats
    file.unlink()
    return {name: kind.name for name, kind in types.items()}, fixed


def packed_size(rows: int, columns: int, type: str) -> int:
    """Bytes of a tensor of this type in a file."""
    return _padded(rows * _row_bytes(columns, gguf.GGMLQuantizationType[type]))


def packed_rows(folder: Path) -> dict[str, Any]:
    """The packed rows `(rows, bytes)` in the safetensors files of `folder`, by tensor; they stay on disk until indexed."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            found |= {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 # not a dict
    return found


def peak_memory(
    config: Mapping[str, Any], options: GgufExport, threads: int = 2, *, adapter: Path | None = None
) -> int:
    """Bytes of memory that `stream` takes at most, in the process of `stream_process`, for a model with this `config.json`.

    It grows with the vocabulary and the width of a row, not with the number of layers. An adapter adds torch, its own size,
    and what merging the largest tensor takes, because a merged tensor is held whole.
    """
    check_streamable(config)
    model = typed(config)
    widest: int = max(model.hidden_size, model.intermediate_size)
    piece = max(PIECE, head_size(model) * widest)
    memory: int = BASE + TOKEN * model.vocab_size + WEIGHT * piece * (threads + 2)
    if uses_importance(options.type):  # the importance matrix, here and in llama.cpp's dry run
        memory += 8 * model.num_hidden_layers * (6 * model.hidden_size + model.intermediate_size)
    if adapter:
        file = adapter / ADAPTER_WEIGHTS
        whole = any("embed_tokens" in name or "lm_head" in name for name in places_of(file))
        rows = max(widest, head_size(model) * model.num_attention_heads, model.vocab_size * whole)
        memory += MERGING + 2 * file.stat().st_size + MERGED * rows * model.hidden_size
    return memory


def _write_hollow(out: Path, model: Model, types: Types, type: str | None = None) -> None:
    """Write the header, and a hole as long as the tensors."""
    _write_header(out, model, types, type)
    with out.open("r+b") as file:
        size = sum(_padded(_bytes(tensor, types[tensor.name])) for tensor in model.tensors)
        file.truncate(file.seek(0, 2) + size)


def _write_header(
    out: Path, model: Model, types: Types, type: str | None = None, *, feedback: bool = False
) -> None:
    """Write the part of the file before the tensors' data, as llama.cpp writes it for the file type `type`.

    With `feedback` it says that its weights were rounded with error feedback, which its proof must know.
    """
    writer = metadata(model, out)
    if feedback:
        writer.add_string(ROUNDING, FEEDBACK)
    if type:
        keys = writer.kv_data[0]
        for key in (gguf.Keys.General.QUANTIZATION_VERSION, gguf.Keys.General.FILE_TYPE):
            del keys[key]  # llama.cpp puts the two at the end
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(file_type(type))
    shapes = {tensor.name: tensor for tensor in model.tensors}
    for name, kind in types.items():
        tensor = shapes[name]
        writer.add_tensor_info(name, tensor.shape, np.dtype(np.float32), _bytes(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with out.open("ab") as file:
        _pad(file)


def _jobs(
    tensors: Iterable[Tensor], types: Types, imatrix: Mapping[str, Floats], packed: Mapping[str, Any]
) -> Iterator[tuple[str, Job]]:
    """The work in the order of the file, piece by piece; a tensor's last piece comes with its name."""
    for tensor in tensors:
        kind = types[tensor.name]
        if tensor.name in packed:
            rows, step = packed[tensor.name], max(1, PIECE // tensor.shape[-1])
            for start in range(0, tensor.shape[0], step):
                stop = min(start + step, tensor.shape[0])
                last = stop == tensor.shape[0]
                yield tensor.name if last else "", partial(_packed, tensor, kind, rows, start, stop)
            continue
        weights = _importance(tensor, imatrix) if kind is not F32 else None
        for last, read in _pieces(tensor):
            yield tensor.name if last else "", partial(_convert, tensor.name, read, kind, weights)


def _packed(
    tensor: Tensor, kind: gguf.GGMLQuantizationType, rows: Any, start: int, stop: int
) -> NDArray[np.uint8]:
    """Some packed rows, which must be blocks of the type `kind`."""
    found: NDArray[np.uint8] = np.ascontiguousarray(rows[start:stop])
    wanted = (stop - start, _row_bytes(tensor.shape[-1], kind))
    if found.shape != wanted or not library().ggml_validate_row_data(kind, found.ctypes.data, found.nbytes):
        raise StageError(
            f"'{tensor.name}' was not rounded to {kind.name}. No file was written.",
            "Quantize the model again.",
        )
    return found


def _pieces(tensor: Tensor) -> Iterator[tuple[bool, Callable[[], Floats]]]:
    """Functions that read successive rows of the tensor, each with whether it reads the last ones."""
    length, row = tensor.shape[0], prod(tensor.shape[1:])
    rows, step = tensor.rows, max(1, PIECE // (row * tensor.group)) * tensor.group
    if tensor.group == length:  # a merged tensor is made once, here
        whole, step = tensor.load(), max(1, PIECE // row)
        rows = partial(entries, whole)
    for start in range(0, length, step):
        stop = min(start + step, length)
        yield stop == length, partial(rows, start, stop)


def _importance(tensor: Tensor, imatrix: Mapping[str, Floats]) -> Floats | None:
    """The importance of the tensor's columns, if there is any. Raises `StageError` where llama.cpp fails."""
    if (weights := imatrix.get(tensor.name)) is None:
        return None
    if weights.size == tensor.shape[-1]:
        return np.ascontiguousarray(weights, np.float32)
    if tensor.name == EMBEDDING:
        return None
    raise StageError(
        f"imatrix size {weights.size} is different from tensor size {tensor.shape[-1]} for {tensor.name}. "
        "No file was written.",
        "Compute the importance matrix with this model.",
    )


def _in_order(
    pool: ThreadPoolExecutor, jobs: Iterable[tuple[str, Job]], ahead: int
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Each job's name and result, in order; at most `ahead` are running or waiting to be written."""
    waiting: deque[tuple[str, Future[NDArray[Any]]]] = deque()
    for name, job in jobs:
        waiting.append((name, pool.submit(job)))
        if len(waiting) == ahead:
            name, future = waiting.popleft()
            yield name, future.result()
    for name, future in waiting:
        yield name, future.result()


def _convert(
    name: str, read: Callable[[], Floats], kind: gguf.GGMLQuantizationType, weights: Floats | None
) -> NDArray[Any]:
    """Rows of one tensor as the bytes of `kind`: the calls that `llama_model_quantize` makes (llama-quant.cpp)."""
    values = np.ascontiguousarray(read())
    ggml = library()
    if not ggml.ggml_validate_row_data(F32, values.ctypes.data, values.nbytes):
        raise CorruptError(
            f"'{name}' holds a weight that is not a finite number. No file was written.",
            "The model or its adapter is damaged: download or tune it again.",
        )
    if kind is F32:
        return values
    columns = values.shape[-1]
    out = np.empty(values.size // columns * _row_bytes(columns, kind), np.uint8)
    importance = weights.ctypes.data if weights is not None else None
    ggml.ggml_quantize_chunk(
        kind, values.ctypes.data, out.ctypes.data, 0, values.size // columns, columns, importance
    )
    if not ggml.ggml_validate_row_data(kind, out.ctypes.data, out.nbytes):
        raise StageError(
            f"'{name}' cannot be stored as {kind.name}: a scale is out of range. No file was written.",
            "Choose a larger type for it with tensor_types.",
        )
    return out


def _row_bytes(columns: int, kind: gguf.GGMLQuantizationType) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    return int(columns // block * size)


def _bytes(tensor: Tensor, kind: gguf.GGMLQuantizationType) -> int:
    return prod(tensor.shape[:-1]) * _row_bytes(tensor.shape[-1], kind)


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: Any) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))
