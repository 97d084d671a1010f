"""The elements of a plot as inline SVG: text stays text, colours follow the page (light, dark, print), equal input gives equal bytes.

Classes used by the page's style sheet: `mark` and `hollow` (data), `soft` (second series), `grid`, `limit`, `tick`, `name`.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

WIDTH = 400  # user units, about one pixel each on a phone
ROW = 30


def svg(height: float, label: str, parts: Sequence[Markup]) -> Markup:
    """A picture of `WIDTH` and `height` user units, with `label` for those who do not see it."""
    view = f"0 0 {WIDTH} {height:g}"
    return tag("svg", *parts, viewBox=view, role="img", aria_label=label)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A line of the class `style`."""
    return tag("line", class_=style, x1=x1, y1=y1, x2=x2, y2=y2)


def text(x: float, y: float, said: str, style: str, anchor: str) -> Markup:
    """`said` in the class `style`, with its `start`, `middle` or `end` at `x`."""
    return tag("text", said, class_=style, x=x, y=y, text_anchor=anchor)


def tag(name: str, *children: str, **attributes: str | float) -> Markup:
    """One element, everything escaped; `class_` and `text_anchor` become `class` and `text-anchor`."""
    written = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else f"{value:.1f}"
        )
        for key, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(written), Markup("").join(children))


def margin(names: Sequence[str]) -> float:
    """The width for the longest of `names` at the left, within limits."""
    return min(150.0, 18 + 6.6 * max(map(len, names), default=0))
