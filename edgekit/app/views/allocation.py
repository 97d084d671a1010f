"""The types of a file's tensors as a picture in characters: layers across, a row for each kind, a digit of its bits in each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from math import ceil
from typing import Any

from edgekit.app.views.results import Results
from edgekit.app.views.symbols import Symbols
from edgekit.base.texts import one_line
from edgekit.containers.ggml_types import BITS
from edgekit.report.allocation import MOST, Kind, by_cost, error, kinds, shades
from edgekit.report.summary import figure

WIDEST = 16  # cells of the name of a kind
EVERY = 10  # cells between the numbers of layers

Part = tuple[str, str]
"""A text and its style, in which `$primary` is the theme's."""


def lines(results: Results, width: int) -> Iterator[list[Part]]:
    """The picture of each file whose types are known, in at most `width` cells, and its worst tensors; nothing without any."""
    for row in results.rows:
        if found := row.variant.quantization:
            yield []
            yield [(f"bits of each tensor of {row.variant.name}, by layer", "bold")]
            yield from _picture(found, width)
            yield from _worst(found)


def _picture(found: Mapping[str, Any], width: int) -> Iterator[list[Part]]:
    rows, shade = kinds(found), shades(found)
    names = min(WIDEST, max((len(row.name) for row in rows), default=0))
    layers = max([1, *(len(row.types) for row in rows if row.layered)])
    each = ceil(layers / max(1, width - names - len(" 4.97 ")))
    cells = ceil(layers / each)
    for row in rows:
        name = f"{one_line(row.name, names):<{names}} "
        yield [(name, ""), *_cells(row, each, cells, shade), (f" {row.mean}", "")]
    numbers = "".join(f"{each * cell:<{EVERY}}" for cell in range(0, cells, EVERY))
    yield [(f"{' ' * names} {numbers.rstrip()}", "dim")]
    legend = [
        ((_digit(type), _style(shade[type])), (f" {type}, {BITS[type]:.3g} bits  ", "")) for type in shade
    ]
    yield [part for pair in legend for part in pair]
    if each > 1:
        yield [(f"a cell is {each} layers: the type with the most bits", "dim")]


def _cells(row: Kind, each: int, cells: int, shade: Mapping[str, float]) -> Iterator[Part]:
    """The row in cells of `each` layers; a tensor outside the layers is one bar."""
    if row.layered:
        types = [_widest(row.types[layer : layer + each]) for layer in range(0, len(row.types), each)]
        for type, run in groupby(types):
            yield _digit(type) * len(list(run)), _style(shade.get(type or ""))
        yield " " * (cells - len(types)), ""
    else:
        yield f"{_digit(row.types[0]):<{cells}}", _style(shade.get(row.types[0] or ""))


def _widest(types: Sequence[str | None]) -> str | None:
    return max(types, key=lambda type: BITS.get(type or "", 0.0))


def _digit(type: str | None) -> str:
    """Whole bits; `F` for a float of 16 or more."""
    if type is None:
        return Symbols.waiting
    return Symbols.lost if type not in BITS else str(int(BITS[type])) if BITS[type] < 10 else "F"


def _style(shade: float | None) -> str:
    return "" if shade is None else f"auto on $primary {shade:.0%}"


def _worst(found: Mapping[str, Any]) -> Iterator[list[Part]]:
    worst, costs = found["worst"][:MOST], by_cost(found)
    if worst:
        head = "costliest tensors: estimated KLD in nats, output error" if costs else "largest output errors"
        yield [(head, "bold")]
    longest = max((len(one["name"]) for one in worst), default=0)
    for one in worst:
        cost = f"{figure(one['cost_nats']):<8}" if costs else ""
        yield [(f"{one['name']:<{longest}} {one['type']:<6} {cost}{error(one)}", "")]
