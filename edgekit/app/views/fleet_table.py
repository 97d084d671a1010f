"""The table of devices: which columns fit a width, what each cell says, in which order, and which rows are left in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len, set_cell_size

from edgekit.app.views.symbols import Symbols
from edgekit.base.clock import clock
from edgekit.field.fleet.fleet import FleetView
from edgekit.field.status import STATES, ReleaseStatus

UNKNOWN = "-"
PADDING = 1  # cells after each column
WORST = "worst"
LEAST_WHY = 32
WIDE = 100
SCROLL_BAR = 2

Number = Callable[[ReleaseStatus], float | None]


@dataclass(frozen=True)
class Column:
    """A column of the table: `rank` says how soon it is left out where there is little room, the highest first.

    `number` is what it is sorted by, the worst first: the greatest, or the least where `least` is set; `form` is how it
    is written, times `scale`.
    """

    name: str
    title: str
    width: int
    rank: int
    number: Number | None = None
    form: str = ""
    scale: float = 1.0
    least: bool = False

    @property
    def right(self) -> bool:
        """Whether it is aligned right."""
        return self.number is not None


COLUMNS = (
    Column("device", "device", 14, 0),
    Column("model", "model@release", 20, 1),
    Column("state", "state", 10, 0),
    Column("tokens", "tok/s", 6, 2, lambda row: row.tokens_per_s, ".1f", least=True),
    Column("p95", "p95 ms", 6, 0, lambda row: row.ttft_p95_s, ".0f", 1000.0),
    Column("spark", "p95 in window", 16, 4),
    Column("rss", "rss MiB", 7, 3, lambda row: row.rss_mib, ".0f"),
    Column("temp", "temp", 4, 8, lambda row: row.temperature_c, ".0f"),
    Column("sure", "conf", 4, 6, lambda row: row.confidence, ".2f", least=True),
    Column("drift", "drift", 5, 9, lambda row: float(row.drift), ".0f"),
    Column("errors", "errors", 6, 10, lambda row: row.error_rate, ".1%"),
    Column("since", "since", 5, 3, lambda row: None if row.trouble_since is None else -row.trouble_since),
    Column("why", "why", LEAST_WHY, 7),
)
SORTS = (WORST, "device", *(column.name for column in COLUMNS if column.number is not None))


def columns(width: int) -> tuple[Column, ...]:
    """The columns that fit a terminal of `width` cells, the most telling first; the last takes the room that is left."""
    left = width - SCROLL_BAR
    widths: dict[str, int] = {}
    for column in sorted(COLUMNS, key=lambda one: one.rank):
        narrow = column.width if width >= WIDE else min(column.width, 15)
        if narrow + PADDING <= left and (column.name != "spark" or width >= WIDE):
            left -= narrow + PADDING
            widths[column.name] = narrow
    if grows := next((name for name in ("why", "model", "device") if name in widths), ""):
        widths[grows] += left
    return tuple(replace(one, width=widths[one.name]) for one in COLUMNS if one.name in widths)


def cells(row: ReleaseStatus, shown: Sequence[Column], now: float) -> list[str]:
    """The texts of a row, one for each column, none wider than its column."""
    return [_fit(_text(row, column, now), column) for column in shown]


def ordered(rows: Sequence[ReleaseStatus], sort: str) -> list[ReleaseStatus]:
    """Rows by one column, the worst first and the unknown last; rows come worst first already."""
    if sort == "device":
        return sorted(rows, key=lambda row: row.device)
    column = next((one for one in COLUMNS if one.name == sort), None)
    if column is None or column.number is None:
        return list(rows)
    number, sign = column.number, 1.0 if column.least else -1.0
    return sorted(rows, key=lambda row: (number(row) is None, sign * (number(row) or 0.0)))


def matching(rows: Sequence[ReleaseStatus], text: str, now: float) -> list[ReleaseStatus]:
    """The rows that hold each word of `text` in device, model, release, state, or what is wrong."""
    words = text.casefold().split()

    def holds(row: ReleaseStatus) -> bool:
        more = "silenced" if row.silenced(now) else ""
        whole = f"{row.device} {row.model}@{row.release} {row.state} {row.why} {more}".casefold()
        return all(word in whole for word in words)

    return [row for row in rows if holds(row)]


def strip(fleet: FleetView) -> list[tuple[str, str]]:
    """What stands above the table: words, each with the state it is of."""
    many = len(fleet.devices)
    parts = [(f"{many} device{'' if many == 1 else 's'}", "")]
    for state in STATES[:3]:
        if count := fleet.count(state):
            parts.append((f"{Symbols.of(state)} {count} {state}", state))
    if fleet.rows and len(parts) == 1:
        well = "all well" if fleet.count("OK") else "nothing in use"
        parts.append((f"{Symbols.ok} {well}", "OK"))
    if fleet.silenced:
        parts.append((f"{fleet.silenced} silenced", ""))
    return parts


def joined(values: Sequence[float | None], count: int) -> list[float | None]:
    """At most `count` values, each the largest of neighbours, so that no peak is lost."""
    each = -(-len(values) // count) or 1
    groups = [
        [one for one in values[at : at + each] if one is not None] for at in range(0, len(values), each)
    ]
    return [max(group) if group else None for group in groups]


def _text(row: ReleaseStatus, column: Column, now: float) -> str:
    match column.name:
        case "device":
            return row.device
        case "model":
            both = bool(row.model and row.release)
            name = f"{row.model}@{row.release}" if both else row.model or row.release
            if both and len(name) > column.width:  # the ends tell apart, the middle does not
                kept = max(1, column.width - len(row.release[:7]) - 1 - len(Symbols.ellipsis))
                name = f"{row.model[:kept]}{Symbols.ellipsis}@{row.release[:7]}"
            return name or (UNKNOWN if not row.until else "(model file)")
        case "state" if not row.until and row.state == "IDLE":
            return f"{Symbols.lost} ASKING"
        case "state":
            return f"{Symbols.of(row.state)} {row.state}"
        case "spark":
            return Symbols.spark(joined(row.series.ttft_p95_s, column.width), column.width)
        case "since":
            return "" if row.trouble_since is None else clock(row.trouble_since, now)[-5:]
        case "why":
            silenced = "silenced: " if row.is_silenced(now) else ""
            seen = bool(row.incidents) and row.incidents[0].state == "ACKNOWLEDGED" and row.state != "LOST"
            return f"{silenced or ('acknowledged: ' if seen else '')}{row.why}"
    value = column.number(row) if column.number else None
    return UNKNOWN if value is None else format(value * column.scale, column.form)


def _fit(text: str, column: Column) -> str:
    """`text` in the column's width, in cells of a terminal: some letters take two."""
    if cell_len(text) > column.width:
        text = set_cell_size(text, max(0, column.width - len(Symbols.ellipsis))) + Symbols.ellipsis
    return " " * (column.width - cell_len(text)) + text if column.right else text
