"""What quantized files are compared on before one is kept, and the calibration sets that are tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from edgekit.base.artifacts import digest_of
from edgekit.build.request import Request
from edgekit.data.calibration_text import (
    HELD_OUT_ROWS,
    Calibration,
    TextTokenizer,
    calibration_of,
    passages,
    split_rows,
    split_windows,
)
from edgekit.data.rows import Row, content_of, evenly_spaced
from edgekit.data.splits import Dataset
from edgekit.registry import Trial
from edgekit.targets.target import Quantize

PROVEN_ROWS = 64  # validation rows from the first, on which the proof measures drift
OWN, ROWS_TOO = "edgekit's text", "the rows of --data and edgekit's text"


class Tokenizer(TextTokenizer, Protocol):
    """The text path of a model, with its chat template."""

    def render_ids(self, rows: Sequence[Row]) -> list[list[int]]:
        """Token ids of each row's whole conversation."""


def of_build(request: Request, tokenizer: Tokenizer, rows: Sequence[Row]) -> Trial | None:
    """The trial that the target of a build asks for, which calibrates on `rows`; None where it asks for none.

    The held-out rows are those validation rows that the proof does not judge by, as long as there are such.
    """
    quantize = request.target.quantize
    if not (quantize.compares_files and quantize.corrects_errors):
        return None
    used, others = split_windows(tokenizer, passages(), count=quantize.calibration_texts)
    kinds = {"rows": tokenizer.render_ids(rows), "text": used}
    kinds = {kind: sequences for kind, sequences in kinds.items() if sequences}
    sets = {" and ".join(kinds): kinds}
    if quantize.calibration_trial:
        sets |= {kind: {kind: sequences} for kind, sequences in kinds.items()}
    held_out = {"rows": tokenizer.render_ids(_held_out_rows(request)), "text": others}
    return Trial({kind: found for kind, found in held_out.items() if found}, sets)


def held_out_digest(request: Request) -> str:
    """The digest of what the files of a build are compared on."""
    return digest_of([content_of(_held_out_rows(request)), passages()])


def _held_out_rows(request: Request) -> list[Row]:
    validation = request.data.validation
    return evenly_spaced(validation[PROVEN_ROWS:] or validation, HELD_OUT_ROWS)


def of_command(
    tokenizer: Tokenizer,
    data: Dataset | None,
    given: tuple[str, Calibration] | None,
    limits: Mapping[str, float],
) -> Trial:
    """The trial of `edgekit quantize`: the rows of `data` with the text that comes with edgekit, and the `given` set, if there
    is one, by its name.

    The text that comes with edgekit always counts: a given set may be of no use to compare on, like one word repeated.
    """
    quantize = Quantize()
    own, others = split_windows(tokenizer, passages(), count=quantize.calibration_texts)
    rows = evenly_spaced(data.train, quantize.calibration_rows) if data else []
    sets = {ROWS_TOO if rows else OWN: {"rows": tokenizer.render_ids(rows), "text": own}}
    held_rows = evenly_spaced(data.validation, HELD_OUT_ROWS) if data else []
    if given:
        name, calibration = given
        given_rows, more_rows = split_rows(calibration.rows, len(calibration.rows))
        text, more_text = split_windows(tokenizer, calibration.passages, count=quantize.calibration_texts)
        sets[name] = {"rows": tokenizer.render_ids(given_rows), "text": text}
        held_rows, others = held_rows or more_rows, [*others, *more_text]
    held_out = {"rows": tokenizer.render_ids(held_rows), "text": others}
    return Trial({kind: found for kind, found in held_out.items() if found}, sets, limits)


def given_set(file: Path, columns: str) -> tuple[str, Calibration]:
    """The calibration set of a file, and its name."""
    found = calibration_of(file, columns)
    return f"the {'rows' if found.rows else 'text'} of {file.name}", found
