"""GGUF files by llama.cpp's own converter, for the architectures and tokenizers that edgekit does not write itself.

It runs in a child process with limits of time and memory. The file gets the keys that edgekit's own writer adds too:
the provenance, every token that ends an answer, and the Unicode form that the tokenizer expects.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import gguf

from edgekit.base.child import Child
from edgekit.base.errors import StageError, UnsupportedError
from edgekit.export.gguf.vocab import read_vocabulary, write_endings
from edgekit.export.weights.folder import places_of
from edgekit.models.tokenizer_files import size_of_vocabulary

MIB = 2**20
BASE_MIB = 3072  # Python with torch and transformers, and the largest tokenizers
COPIES = 4  # of the largest layer in 32-bit floats: as stored, converted, reordered and written
START_S, BYTES_PER_S = 600.0, 4e6  # of a slow and busy machine
LAYER = re.compile(r"^(.*?\.\d+)\.")
SUCCESS, FAILURE = "exit status 0", "exit status 1: "
PHI3 = re.compile("phi-?3", re.IGNORECASE)  # a name by which llama.cpp has tokens take the spaces after them


def convert(converter: Path, source: Path, out: Path, origin: gguf.GGUFWriter) -> None:
    """Write the Hugging Face folder `source` as the float GGUF file `out`, with the converter in the folder `converter`.

    `origin` holds the keys of the file's provenance. A tokenizer that edgekit can write is written by its rules; the
    converter, which needs the makers' own files for it, writes any other. Raises `StageError` with the converter's last
    line when it fails or exceeds its limits, and as `read_vocabulary` and `places_of` do; then there is no `out`.
    """
    shapes = {name: place.tensor.shape for name, place in places_of(source).items()}
    memory_mib, seconds = _limits(shapes)
    with tempfile.TemporaryDirectory() as work:
        keys = Path(work) / "keys.json"
        named, complete = _keys(source, origin)
        keys.write_text(json.dumps({"keys": named, "vocabulary": complete}), encoding="utf-8")
        arguments = [str(converter), str(keys), str(source), "--outfile", str(out), "--outtype", "f32"]
        arguments += ["--model-name", str(origin.kv_data[0][gguf.Keys.General.NAME].value)]
        with Child("edgekit.export.gguf.convert_process", arguments, memory_mib=memory_mib) as child:
            exceeded, reached = child.wait(seconds, memory_mib)
            if exceeded == "timeout":
                how = f"it did not finish within {reached:.0f} s"
            elif exceeded:
                how = f"it needs more than {memory_mib:.0f} MiB of memory"
            else:
                how = child.how_it_ended()
    if not how.startswith(SUCCESS) or not out.is_file():
        out.unlink(missing_ok=True)
        raise StageError(
            f"llama.cpp's converter failed: {how.removeprefix(FAILURE)}. No GGUF file was written.",
            f"The model's files may be incomplete, or not of the architecture that config.json names: {source}",
        )


def _keys(source: Path, origin: gguf.GGUFWriter) -> tuple[list[tuple[str, Any, int, int | None]], bool]:
    """The keys to add to the converter's own, with values and types, and whether they hold the whole vocabulary."""
    keys = origin.kv_data[0]
    keys.pop(gguf.Keys.General.ARCHITECTURE, None)
    complete, strips = True, False
    try:
        found = read_vocabulary(source, size_of_vocabulary(source) or 0)
        found.write(origin)
        strips = found.tokens.strips
    except UnsupportedError:
        write_endings(origin, source)
        complete = False
    if strips or gguf.Keys.General.NAME not in keys:  # without a name, the converter takes the folder's
        keys.pop(gguf.Keys.General.NAME, None)
        origin.add_name("Phi-3" if strips else "model")
    types = [(key, value.value, value.type, value.sub_type) for key, value in keys.items()]
    return [(key, value, int(kind), part and int(part)) for key, value, kind, part in types], complete


def _limits(shapes: Mapping[str, tuple[int, ...]]) -> tuple[float, float]:
    """MiB of memory, and seconds, that converting weights of these shapes may take."""
    layers: Counter[str] = Counter()
    for name, shape in shapes.items():
        found = LAYER.match(name)
        layers[found[1] if found else name] += 4 * prod(shape)
    memory_mib = BASE_MIB + COPIES * max(layers.values(), default=0) / MIB
    return memory_mib, START_S + layers.total() / BYTES_PER_S
