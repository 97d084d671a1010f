"""smol-float: the sample model with weights that lie on no grid, for measurements of quantizers.

    python benchmarks/smol_float.py FOLDER

The sample weights come from a file of Q4_1, which flatters types with the same grid. Here every weight of such a tensor
is drawn anew, uniformly within its own cell: `w + U(-0.5, 0.5) * scale of its block`, by `numpy.random.default_rng(0)`,
tensor by tensor in the file's order. The rest, the Q8_0 embedding and the norms, stays as it is. All is rounded to
float16, which the file that was shipped may be the quantization of.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from edgekit.base.artifacts import written_whole
from edgekit.build.defaults import DEFAULT_MODEL
from edgekit.models.source import bring_in, resolve

NAME = "smol-float"
SKIPPED = ("general.architecture", "general.file_type")  # the writer writes them itself


def write(folder: Path) -> Path:
    """Write the model as a new Hugging Face folder of float32 whose values are all float16."""
    with written_whole(folder) as staging, tempfile.TemporaryDirectory(dir=folder.parent) as work:
        file = Path(work) / f"{NAME}.gguf"
        sample = resolve(DEFAULT_MODEL).path
        assert sample is not None
        redraw(sample, file)
        bring_in(resolve(str(file)), staging)
    return folder


def redraw(source: Path, out: Path) -> None:
    """Write the GGUF file `out` of float16: `source` with each weight of its Q4_1 tensors drawn anew within its cell."""
    reader, draws = gguf.GGUFReader(source), np.random.default_rng(0)
    writer = gguf.GGUFWriter(out, reader.fields[SKIPPED[0]].contents())
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for field in reader.fields.values():
        if field.name not in SKIPPED and not field.name.startswith("GGUF."):
            element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=element)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, _values(tensor, draws))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _values(tensor: gguf.ReaderTensor, draws: np.random.Generator) -> NDArray[Any]:
    """The tensor's new values: float16, but vectors as they are."""
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        return np.asarray(tensor.data)
    values = gguf.dequantize(tensor.data, tensor.tensor_type)
    if tensor.tensor_type == gguf.GGMLQuantizationType.Q4_1:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q4_1]
        scales = (
            tensor.data.reshape(-1, size)[:, :2].copy().view(np.float16).astype(np.float32)
        )  # (blocks, 1)
        cells = scales.repeat(block, axis=1).reshape(values.shape)
        values = values + draws.uniform(-0.5, 0.5, values.shape) * cells
    return values.astype(np.float16)


def main() -> None:
    """Write one folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    print(write(parser.parse_args().folder))


if __name__ == "__main__":
    main()
