"""The types of a file as a picture: layers across, a row for each kind of tensor, the darker the more bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from markupsafe import Markup

from edgekit.containers.ggml_types import BITS
from edgekit.report.allocation import Kind, kinds, shades
from edgekit.report.svg import WIDTH, margin, svg, tag, text

PITCH, HEIGHT = 20, 16  # of rows and of their cells
GAP, NARROW = 1.0, 4.0  # between layers; narrower ones touch
MOST_TICKS = 8
BESIDE = 3  # types in a line of the legend


def types(found: Mapping[str, Any]) -> Markup:
    """The picture of a file's `quantization` in report.json. Tensors outside the layers are one bar."""
    rows, shade = kinds(found), shades(found)
    left, right = margin([row.name for row in rows]), WIDTH - 38.0
    layers = max((len(row.types) for row in rows if row.layered), default=0)
    each = (right - left) / max(1, layers)
    gap = GAP if each > NARROW else 0.0
    parts, words = [], []
    for place, row in enumerate(rows):
        y = PITCH * place
        parts.append(text(left - 10, y + 12, row.name, "name", "end"))
        parts.append(text(WIDTH, y + 12, row.mean, "name", "end"))
        wide = each if row.layered else right - left
        for layer, type in enumerate(row.types):
            if type is not None:
                told = f"{row.name}{f' of layer {layer}' if row.layered else ''}: {type}"
                parts.append(_cell(left + wide * layer, y, wide - gap, shade[type], told))
        words.append(f"{row.name} {_said(row)}")
    y = PITCH * len(rows)
    if layers:
        parts.append(text(left - 10, y + 14, "layer", "tick", "end"))
        parts += [
            text(left + each * (layer + 0.5), y + 14, str(layer), "tick", "middle")
            for layer in range(0, layers, _step(layers))
        ]
        y += 18
    for at, (type, strength) in enumerate(shade.items()):
        x, below = WIDTH / BESIDE * (at % BESIDE), y + 12 + PITCH * (at // BESIDE)
        parts.append(_cell(x, below, HEIGHT, strength, type))
        parts.append(text(x + HEIGHT + 6, below + 12, f"{type}, {BITS[type]:.3g} bits", "name", "start"))
    height = y + 12 + PITCH * -(-len(shade) // BESIDE)
    legend = ", ".join(f"{type} {BITS[type]:.3g} bits" for type in shade)
    return svg(height, f"Type of each tensor by layer ({legend}): {'; '.join(words)}", parts)


def _cell(x: float, y: float, width: float, strength: float, told: str) -> Markup:
    box = {"x": x, "y": y, "width": width, "height": HEIGHT}
    return tag("rect", tag("title", told), class_="mark", fill_opacity=f"{strength:.2f}", **box)


def _step(layers: int) -> int:
    """Layers between two ticks."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 2000) if layers <= MOST_TICKS * step)


def _said(row: Kind) -> str:
    """`0 to 3 Q5_0, 4 to 29 IQ4_NL`."""
    return ", ".join(_runs(row)) if row.layered else f"{row.types[0]}"


def _runs(row: Kind) -> Iterator[str]:
    first = 0
    for type, run in groupby(row.types):
        last = first + len(list(run)) - 1
        if type is not None:
            yield f"{first} to {last} {type}" if last > first else f"{first} {type}"
        first = last + 1
