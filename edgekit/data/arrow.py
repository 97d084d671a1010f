"""Parquet files, Arrow files, and the folders that `datasets` saves, read in batches by pyarrow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError, reason
from edgekit.base.parts import missing_part
from edgekit.data.kinds import Kind
from edgekit.data.tables import Record, Table, check_names

BATCH = 1024  # rows that are Python objects at the same time
METADATA = b"huggingface"  # key of the metadata in which `datasets` describes the columns


def open_columns(path: Path, kind: Kind) -> Table:
    """A Parquet or Arrow file; the numbers of its records count rows from 1. Only the columns that are read are decoded.

    Raises `ConfigError` for a damaged file, and for one with two columns of the same name.
    """
    schema, _ = _opened(path, kind, None)
    names = tuple(schema.names)
    check_names(path, names)
    classes = classes_in(_features(schema.metadata))
    return Table(kind, lambda columns: _rows(path, kind, columns or names), names, classes)


def _opened(path: Path, kind: Kind, columns: Sequence[str] | None) -> tuple[Any, Iterator[Any]]:
    """The schema of a file, and the batches of its `columns`."""
    pyarrow = _pyarrow()
    try:
        if kind.name == "parquet":
            from pyarrow import parquet

            file = parquet.ParquetFile(path)
            return file.schema_arrow, file.iter_batches(batch_size=BATCH, columns=columns)
        open_it = pyarrow.ipc.open_file if kind.name == "arrow" else pyarrow.ipc.open_stream
        memory = pyarrow.memory_map(str(path))
        reader = open_it(memory)
        if columns is not None:
            fields = sorted(map(reader.schema.get_field_index, columns))
            memory = pyarrow.memory_map(str(path))
            reader = open_it(memory, options=pyarrow.ipc.IpcReadOptions(included_fields=fields))
        if kind.name == "arrow":
            return reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))
        return reader.schema, iter(reader)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, kind, error) from error


def classes_in(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of integer labels by column, in the features that `datasets` notes beside the data."""
    return {
        column: tuple(map(str, feature["names"]))
        for column, feature in features.items()
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
    }


def _features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    try:
        found = json.loads((metadata or {}).get(METADATA, b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _rows(path: Path, kind: Kind, columns: Sequence[str]) -> Iterator[Record]:
    pyarrow = _pyarrow()
    _, batches = _opened(path, kind, columns)
    number = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # offsets beyond a buffer would end the process
            for start in range(0, batch.num_rows, BATCH):
                for values in batch.slice(start, BATCH).to_pylist():
                    number += 1
                    yield number, values
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, kind, error) from error


def _damaged(path: Path, kind: Kind, error: Exception) -> ConfigError:
    why = (reason(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return ConfigError(
        f"{path} is a damaged {kind.text} file: {why}. Nothing was started.", "Write or fetch it again."
    )


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ModuleNotFoundError as error:
        raise missing_part(error) from error
    return pyarrow
