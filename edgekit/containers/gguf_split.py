"""A GGUF model in several parts (`name-00001-of-00003.gguf`, by llama.cpp's `gguf-split`): checked, and joined to one file.

The first part holds the metadata, each part a share of the tensors. All parts pass the bounded parser before any of
their bytes is used. The joined file is what `llama-gguf-split --merge` writes: the metadata without the keys of the split,
and all tensors.
"""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.containers.gguf import COUNT_LIMIT, GgufLayout, read_gguf
from edgekit.containers.reader import HINT, shown

PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
KEYS = "split."
COUNT, NUMBER, TENSORS = "split.count", "split.no", "split.tensors.count"
BLOCK = 1 << 20


def base_name(path: Path) -> str:
    """The name of a GGUF file without its ending, and without the number of a part."""
    found = PART.fullmatch(path.name)
    return found[1] if found else path.name.removesuffix(".gguf")


def parts_of(path: Path) -> list[Path]:
    """All parts of the model that `path` is a part of, in order; `path` alone if its name is not that of a part.

    Raises `ConfigError`, which names the parts that are missing.
    """
    found = PART.fullmatch(path.name)
    if found is None:
        return [path]
    name, count = found[1], int(found[3])
    if not 1 <= int(found[2]) <= count:
        raise ConfigError(f"{path.name} is part {int(found[2])} of {count}.", "Check the name.")
    parts = [path.with_name(f"{name}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        more = f" and {len(missing) - 3} others" if len(missing) > 3 else ""
        raise ConfigError(
            f"{path.name} is one of {count} parts of a model; missing in {path.parent}: {', '.join(missing[:3])}{more}.",
            "Get all parts, and put them into one folder.",
        )
    return parts


def read_parts(parts: Sequence[Path]) -> list[GgufLayout]:
    """The header of each part, held against each other.

    Raises `CorruptError` for parts that do not belong together.
    """
    layouts = [read_gguf(part) for part in parts]
    first, named = layouts[0], set[str]()
    for number, (part, layout) in enumerate(zip(parts, layouts, strict=True)):
        metadata = layout.metadata
        said = (metadata.get(NUMBER), metadata.get(COUNT))
        if len(parts) > 1 and said != (number, len(parts)):
            raise _apart(part, f"it says that it is part {said[0]} of {said[1]}, counted from 0")
        for key in metadata:
            if not key.startswith(KEYS) and number and _differ(metadata[key], first.metadata.get(key)):
                raise _apart(part, f"its {shown(key)} is not that of the first part")
        if layout.alignment != first.alignment or layout.version != first.version:
            raise _apart(part, "its alignment or version is not that of the first part")
        if twice := named & layout.tensors.keys():
            raise _apart(part, f"it holds tensor {shown(min(twice))}, which another part holds too")
        named |= layout.tensors.keys()
    for part, layout in zip(parts, layouts, strict=True):
        if len(parts) > 1 and layout.metadata.get(TENSORS) != len(named):
            told = layout.metadata.get(TENSORS)
            raise _apart(part, f"it says that all parts have {told} tensors, and they have {len(named)}")
    return layouts


def read_whole(path: Path) -> GgufLayout:
    """The header of a GGUF file; of a part, that of all parts together: the tensors' places are in their own files."""
    layouts = read_parts(parts_of(path))
    tensors = {name: tensor for layout in layouts for name, tensor in layout.tensors.items()}
    return replace(layouts[0], tensors=tensors)


@contextmanager
def whole(path: Path, folder: Path) -> Iterator[Path]:
    """One file with the whole model: `path` itself, or, of a part, a file in `folder` with all parts, removed at the end.

    Raises `ConfigError` for a missing part and `CorruptError` for parts that do not belong together.
    """
    parts = parts_of(path)
    if len(parts) == 1:
        yield path
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="joined-", dir=folder) as made:
        joined = Path(made) / f"{base_name(path)}.gguf"
        join(parts, joined)
        yield joined


def join(parts: Sequence[Path], out: Path) -> None:
    """Write all parts to the new file `out`. Raises as `read_parts`."""
    layouts = read_parts(parts)
    first = layouts[0]
    kept = [place for key, place in first.places.items() if not key.startswith(KEYS)]
    tensors = [tensor for layout in layouts for tensor in layout.tensors.values()]
    if len(tensors) > COUNT_LIMIT:
        raise _apart(parts[0], f"the parts hold {len(tensors)} tensors")
    with out.open("xb") as file, parts[0].open("rb") as source:
        file.write(struct.pack("<4sIQQ", b"GGUF", first.version, len(tensors), len(kept)))
        for start, end in kept:
            _copy(source, start, end - start, file)
        offset = 0
        for tensor in tensors:
            name, dimensions = tensor.name.encode(), len(tensor.shape)
            file.write(struct.pack(f"<Q{len(name)}sI", len(name), name, dimensions))
            file.write(struct.pack(f"<{dimensions}QIQ", *tensor.shape, tensor.type, offset))
            offset += _padded(tensor.nbytes, first.alignment)
        file.write(bytes(_padded(file.tell(), first.alignment) - file.tell()))
        for part, layout in zip(parts, layouts, strict=True):
            with part.open("rb") as data:
                for tensor in layout.tensors.values():
                    _copy(data, tensor.offset, tensor.nbytes, file)
                    file.write(bytes(_padded(tensor.nbytes, first.alignment) - tensor.nbytes))


def _copy(source: IO[bytes], start: int, size: int, out: IO[bytes]) -> None:
    source.seek(start)
    while size:
        block = source.read(min(BLOCK, size))
        if not block:
            raise CorruptError(f"{source.name} became shorter while it was read.", HINT)
        out.write(block)
        size -= len(block)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _differ(a: object, b: object) -> bool:
    return repr(a) != repr(b)


def _apart(part: Path, fault: str) -> CorruptError:
    return CorruptError(
        f"{part} does not belong to the other parts: {fault}. Nothing was loaded.",
        "Get all parts again from one source.",
    )
