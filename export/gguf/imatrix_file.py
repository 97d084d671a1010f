"""Files of an importance matrix, as llama.cpp's `llama-imatrix` writes them and `llama-quantize` reads them.

A GGUF file has for each tensor `NAME.in_sum2`, the sums of squared inputs `(matrices, columns)`, and `NAME.counts`, the
tokens that each matrix was multiplied with `(matrices, 1)`: one matrix, or one for each expert. The older form (`.dat`) is

    entries { length name calls size sums[size] }... chunks length dataset         int32, text, and float32 for the sums

where the sums are means times calls, and what follows the entries may be missing. Source: tools/imatrix/imatrix.cpp and
common/imatrix-loader.cpp of llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import CorruptError
from edgekit.containers.gguf import MAGIC, GgufLayout, read_gguf
from edgekit.containers.reader import Reader, shown

Floats = NDArray[np.float32]

SUMS, COUNTS = ".in_sum2", ".counts"
LIMIT = 4 << 30  # bytes of an older file; 58 layers of 256 experts take about 1 GB
LEAST_ENTRY_BYTES = 4 + 1 + 4 + 4 + 4  # length, name, calls, size, value
HINT = "Give a file that llama-imatrix wrote (.gguf or .dat), or fetch it again."


def read(file: Path) -> dict[str, Floats]:
    """Mean squared input of each column by tensor name, `(columns,)`.

    A tensor of experts has `(experts, columns)`, with ones where no token reached an expert, as in `llama-quantize`; in the
    older form, which does not tell how many there are, `(experts * columns,)`. All values are finite and none is negative.

    Raises `CorruptError` for any other file, and `ConfigError` when there is none.
    """
    with Reader(file, LIMIT) as reader:
        first = reader.take(len(MAGIC), "the number of entries")
        if first != MAGIC:
            return _read_older(reader, int.from_bytes(first, "little"))
    return _read_gguf(file)


def write(
    values: Mapping[str, Floats], file: Path, *, tokens: int, chunks: int, datasets: Sequence[str]
) -> None:
    """Write means as `read` gives them to a GGUF file for `llama-quantize --imatrix`; a file there is replaced.

    They were taken over `tokens` tokens in `chunks` sequences of the texts `datasets`, of which llama.cpp needs one or more.
    The same arguments give the same bytes.
    """
    count = np.float32(tokens)
    with written_whole(file, force=True, file=True) as staging:
        writer = gguf.GGUFWriter(staging, "")
        writer.kv_data[0].clear()  # such a file names no architecture
        writer.add_type(gguf.GGUFType.IMATRIX)
        writer.add_array(gguf.Keys.IMatrix.DATASETS, list(datasets))
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, chunks)
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, -(-tokens // chunks))
        for name, means in sorted(values.items()):
            writer.add_tensor(name + SUMS, np.ascontiguousarray(means, np.float32) * count)
            writer.add_tensor(name + COUNTS, np.full((*means.shape[:-1], 1), count))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _read_gguf(file: Path) -> dict[str, Floats]:
    layout, data = read_gguf(file), np.memmap(file, np.uint8, "r")
    if str(layout.metadata.get(gguf.Keys.General.TYPE)) != gguf.GGUFType.IMATRIX:  # it may be an array
        raise CorruptError(f"{file} is a GGUF file, but not an importance matrix.", HINT)
    names = {
        name.removesuffix(end) for end in (SUMS, COUNTS) for name in layout.tensors if name.endswith(end)
    }
    if not names:
        raise CorruptError(f"{file} holds no entries of an importance matrix.", HINT)
    found = {}
    for name in sorted(names):
        sums, counts = (_floats(file, layout, data, name + end) for end in (SUMS, COUNTS))
        if sums.size % counts.size:
            raise _corrupt(
                file, f"{sums.size} sums of {shown(name)} do not divide into {counts.size} matrices"
            )
        sums, tokens = sums.reshape(counts.size, -1), counts.round()[:, None]
        means = np.where(tokens > 0, sums / np.maximum(tokens, 1), np.float32(1))
        found[name] = means if len(means) > 1 else means[0]
    return found


def _floats(file: Path, layout: GgufLayout, data: NDArray[np.uint8], name: str) -> Floats:
    """The values of a tensor, flat."""
    tensor = layout.tensors.get(name)
    if tensor is None or tensor.type != gguf.GGMLQuantizationType.F32:
        raise _corrupt(file, f"it has no tensor {shown(name)} of type F32")
    return _checked(file, name, data[tensor.offset : tensor.offset + tensor.nbytes].view("<f4"))


def _read_older(reader: Reader, count: int) -> dict[str, Floats]:
    if not 0 < count <= reader.left // LEAST_ENTRY_BYTES:
        raise CorruptError(f"{reader.path} is not an importance matrix of llama.cpp.", HINT)
    found: dict[str, Floats] = {}
    for number in range(1, count + 1):
        name = _name(reader, f"the name of entry {number}")
        what = f"entry {shown(name)}"
        if name in found:
            raise reader.corrupt(f"{what} appears twice")
        calls, size = struct.unpack("<ii", reader.take(8, what))
        if size < 1:
            raise reader.corrupt(f"{what} has {size} values")
        sums = _checked(reader.path, name, np.frombuffer(reader.take(4 * size, what), "<f4"))
        found[name] = sums / np.float32(max(calls, 1))
    return found


def _name(reader: Reader, what: str) -> str:
    """A name; llama.cpp reads it up to its first NUL, so it must hold none."""
    at, length = reader.position, int.from_bytes(reader.take(4, what), "little")
    try:
        name = reader.take(length, what).decode()
    except UnicodeDecodeError as error:
        raise reader.corrupt(f"{what} is not UTF-8", at) from error
    if not name or "\0" in name:
        raise reader.corrupt(f"{what} is empty or holds a NUL", at)
    return name


def _checked(file: Path, name: str, values: NDArray[np.floating]) -> Floats:
    """A copy of the values. Raises `CorruptError` unless each can be a sum of squares or a count."""
    if not ((values >= 0) & (values < np.inf)).all():
        raise _corrupt(file, f"{shown(name)} holds a value that is negative or not finite")
    return np.array(values, np.float32)


def _corrupt(file: Path, why: str) -> CorruptError:
    return CorruptError(f"{file} is damaged: {why}.", HINT)
