"""Rows of a Hugging Face folder's tensors as 32-bit floats, read from the file and never mapped.

The pages of a mapped file count as memory of the process until the mapping ends, so mapped weights would cost the size of
the model. A plain read holds only the rows that were requested.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.base.errors import CorruptError
from edgekit.containers.safetensors import DTYPE_BITS
from edgekit.export.weights.folder import places_of

# What safetensors calls the types that numpy has; BF16 is the upper half of a float.
NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
COMPARED = 1 << 20  # weights


class Rows:
    """The tensors of a model folder, read row by row; `shapes` holds the shape of each, in the order they are stored.

    Raises as `places_of`, which checks headers, sizes and the index first. Safe to read from several threads.
    """

    def __init__(self, folder: Path) -> None:
        self._places = places_of(folder)
        self.shapes = {name: place.tensor.shape for name, place in self._places.items()}

    def read(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Entries `start` to `stop` of the first axis, `(stop - start, ...)`.

        Raises `CorruptError` when the file is shorter than its header says.
        """
        file, tensor = self._places[name]
        kind, shape = tensor.dtype, tensor.shape
        row = DTYPE_BITS[kind] // 8 * prod(shape[1:])
        stored = np.fromfile(file, np.uint8, (stop - start) * row, offset=tensor.start + start * row)
        if stored.size != (stop - start) * row:
            raise CorruptError(f"{file} ends inside '{name}'.", "Fetch or write the file again.")
        if kind == "BF16":
            values = np.left_shift(stored.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
        else:
            values = stored.view(NUMPY[kind]).astype(np.float32, copy=False)
        return values.reshape(stop - start, *shape[1:])

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same values; a few rows of each are in memory at a time."""
        shape = self.shapes[one]
        if shape != self.shapes[other]:
            return False
        step = max(1, COMPARED // prod(shape[1:]))
        return all(
            np.array_equal(
                self.read(one, start, min(start + step, shape[0])),
                self.read(other, start, min(start + step, shape[0])),
            )
            for start in range(0, shape[0], step)
        )
