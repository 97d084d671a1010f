"""GGUF quantization by llama.cpp's own `llama_model_quantize`, through the C interface of llama-cpp-python."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

from edgekit.base.errors import StageError
from edgekit.base.events import Alert, Emit, Progress, ignore
from edgekit.containers.gguf import read_gguf
from edgekit.targets.target import GgufExport

Imatrix = Mapping[str, NDArray[np.float32]]

STAGE = "quantize.gguf"
ASYMMETRIC = ("Q4_1", "Q5_1")
EIGHT_BITS_OR_MORE = ("F32", "F16", "BF16", "Q8_0")
# Lines of llama.cpp's log: the number and name of a tensor, then its size and, when it changes, its new type.
TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\] +(\S+)")
SIZE = re.compile(r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?")
FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")
ERROR = 4  # GGML_LOG_LEVEL_ERROR in ggml.h


def uses_importance(type: str) -> bool:
    """Whether llama.cpp weights rounding errors by activations for this file type: below 8 bits."""
    return type not in EIGHT_BITS_OR_MORE


def file_type(type: str) -> gguf.LlamaFileType:
    """llama.cpp's file type of this name: `Q4_K_M` is a mixture of tensor types."""
    return gguf.LlamaFileType["ALL_F32" if type == "F32" else f"MOSTLY_{type}"]


def tensor_type(type: str) -> gguf.GGMLQuantizationType:
    """The tensor type that gives a file type its name: `Q4_K` for `Q4_K_M`."""
    return gguf.GGMLQuantizationType[re.sub(r"_[SM]$", "", type)]


@dataclass(frozen=True)
class Choice:
    """Which type each tensor of a file gets."""

    types: dict[str, gguf.GGMLQuantizationType]
    """By tensor name, in the order of llama.cpp's file."""
    overrides: dict[str, str]
    """The tensor types to ask llama.cpp for, by regular expression."""
    warning: Alert | None
    """The warning that some rows do not fit the type that was asked for; None when all fit."""


def quantize(
    source: Path,
    out: Path,
    options: GgufExport,
    *,
    imatrix: Imatrix | None = None,
    threads: int = 2,
    emit: Emit = ignore,
) -> None:
    """Quantize the float GGUF file `source` to `out`.

    `options.type` is llama.cpp's file type (`Q4_K_M`); `options.tensor_types` gives tensors whose name matches a regular
    expression another type (`{"ffn_down": "Q6_K"}`), as `llama-quantize --tensor-type` does; `imatrix` holds for each
    tensor name the weight of each input column, `(columns,)`.

    Each tensor gets the type that `choose_types` reports. Raises `StageError` with llama.cpp's last error line; `out`
    does not exist then.
    """
    chosen = choose_types(source, options, imatrix)

    def read(line: str) -> None:
        if found := TENSOR.search(line):
            emit(Progress(STAGE, int(found[1]), int(found[2]), "tensors", found[3]))

    try:
        _run(source, out, options, chosen.overrides, imatrix, threads, read)
    except StageError:
        out.unlink(missing_ok=True)
        raise
    if chosen.warning:
        emit(chosen.warning)


def choose_types(source: Path, options: GgufExport, imatrix: Imatrix | None = None) -> Choice:
    """The type that llama.cpp gives each tensor of the float GGUF file `source` when asked as in `quantize`.

    llama.cpp reports the types in the log of a dry run, which reads the file's header and no weights: the data behind
    the header of `source` may be a hole. No library call returns the types, and `stream` needs them before any weight
    is written.

    K types need rows of a multiple of 256 weights; for other rows llama.cpp falls back to a type of its own choice.
    Where that is Q4_1 or Q5_1 the tensor gets Q8_0 instead: on a model with very large activations, Q4_1 and Q5_1
    drifted ten times as far as the smaller Q5_0. Raises `StageError` as `quantize` does, and when the log names other
    tensors than the file has.
    """

    def ask(overrides: Mapping[str, str]) -> Choice:
        types: dict[str, gguf.GGMLQuantizationType] = {}
        name, warning = "", None

        def read(line: str) -> None:
            nonlocal name, warning
            if found := TENSOR.search(line):
                name = found[3]
            elif found := SIZE.fullmatch(line.strip()):
                types[name] = gguf.GGMLQuantizationType[(found[1] or "F32").upper()]
            elif found := FALLBACK.search(line):
                warning = Alert(
                    "warning",
                    f"{found[1]} of {found[2]} tensors have rows that {options.type} cannot hold; "
                    "they get a larger type.",
                    "The file is larger than the type's name suggests; the report gives its bits per weight.",
                )

        _run(source, None, options, overrides, imatrix, 1, read)
        return Choice(types, dict(overrides), warning)

    first = ask(options.tensor_types)
    if first.types.keys() != read_gguf(source).tensors.keys():
        raise StageError(
            "This version of llama.cpp does not report the type of each tensor. No file was written.",
            "Install the version of llama-cpp-python that edgekit was tested with (constraints.txt).",
        )
    unwanted = set(ASYMMETRIC) - {options.type, *options.tensor_types.values()}
    if not any(kind.name in unwanted for kind in first.types.values()):
        return first
    # Ask for every tensor by name: the mixture's choice for one depends on how many were chosen before it.
    by_name = {
        f"^{re.escape(name)}$": "Q8_0" if kind.name in unwanted else kind.name
        for name, kind in first.types.items()
        if kind.name != "F32"
    }
    return replace(ask(by_name), warning=first.warning)


def _run(
    source: Path,
    out: Path | None,
    options: GgufExport,
    tensor_types: Mapping[str, str],
    imatrix: Imatrix | None,
    threads: int,
    read: Callable[[str], None],
) -> None:
    """Run llama.cpp's quantizer once, without `out` as a dry run; each line of its log goes to `read`."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = threads
    params.ftype = file_type(options.type)
    params.dry_run = out is None
    if options.token_embedding_type:
        params.token_embedding_type = tensor_type(options.token_embedding_type)
    if tensor_types:
        params.tt_overrides = ctypes.cast(
            _overrides(tensor_types), ctypes.POINTER(llama_cpp.llama_model_tensor_override)
        )
    columns = {name: np.ascontiguousarray(values, np.float32) for name, values in (imatrix or {}).items()}
    if columns:
        params.imatrix = ctypes.cast(_imatrix(columns), ctypes.POINTER(llama_cpp.llama_model_imatrix_data))
    errors: list[str] = []

    def receive(level: int, line: str) -> None:
        if level == ERROR:
            errors.append(line.strip())
        else:
            read(line)

    llama_cpp.llama_backend_init()
    with llama_log(receive):
        target = str(out or source).encode()  # not opened in a dry run
        failed = llama_cpp.llama_model_quantize(str(source).encode(), target, ctypes.byref(params))
    if failed:
        why = errors[-1].rpartition("failed to quantize: ")[2] if errors else "it gave no reason"
        raise StageError(
            f"llama.cpp could not quantize {source.name} to {options.type}: {why}. No file was written.",
            "If the float file is damaged or incomplete, write it again.",
        )


def _overrides(types: Mapping[str, str]) -> ctypes.Array[llama_cpp.llama_model_tensor_override]:
    """The C array that llama.cpp reads until an entry without a pattern."""
    entries: ctypes.Array[llama_cpp.llama_model_tensor_override]
    entries = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()
    for entry, (pattern, type) in zip(entries, types.items(), strict=False):
        entry.pattern, entry.type = pattern.encode(), tensor_type(type)
    return entries


def _imatrix(columns: Mapping[str, NDArray[np.float32]]) -> ctypes.Array[llama_cpp.llama_model_imatrix_data]:
    """The C array that llama.cpp reads until an entry without a name."""
    entries: ctypes.Array[llama_cpp.llama_model_imatrix_data]
    entries = (llama_cpp.llama_model_imatrix_data * (len(columns) + 1))()
    for entry, (name, values) in zip(entries, columns.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


@contextmanager
def llama_log(read: Callable[[int, str], None]) -> Iterator[None]:
    """Hand llama.cpp's log lines to `read(level, line)` instead of stderr; the log is global to the process."""
    before, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))

    def receive(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        read(level, text.decode("utf-8", "replace"))

    callback = llama_cpp.llama_log_callback(receive)  # must outlive the calls below
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    try:
        yield
    finally:
        llama_cpp.llama_log_set(before, data)
