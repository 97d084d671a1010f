"""The table of devices: its columns at each width, its order, its filter and its sparklines."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rich.cells import cell_len

from edgekit.app.views import fleet_table as table
from edgekit.app.views.symbols import Symbols
from edgekit.field.status import ReleaseStatus

NOW = 1_800_000_000.0


def rows() -> list[ReleaseStatus]:
    def row(device: str, release: str, state: str, model: str = "smol", **more: Any) -> ReleaseStatus:
        return ReleaseStatus(release, state, True, device=device, model=model, until=NOW, **more)

    return [
        row("b", "7f3a", "CRITICAL", ttft_p95_s=0.1, tokens_per_s=5.0, why="Too slow"),
        row("a", "61bc", "WARNING", tokens_per_s=9.0),
        row("c", "61bc", "OK", "tall", ttft_p95_s=0.9),
    ]


def test_sorting_puts_the_worst_first_and_the_unknown_last() -> None:
    def order(name: str) -> str:
        return "".join(row.device for row in table.ordered(rows(), name))

    assert (order("worst"), order("device"), order("p95"), order("tokens")) == ("bac", "abc", "cba", "bac")


def test_filtering_looks_at_device_release_state_and_why() -> None:
    def left(text: str) -> str:
        return "".join(row.device for row in table.matching(rows(), text, NOW))

    assert (left(""), left("61bc"), left("@61bc ok"), left("too SLOW"), left("nothing")) == (
        "bac",
        "ac",
        "c",
        "b",
        "",
    )


@pytest.mark.parametrize("width", [60, 80, 99, 100, 120, 160, 200, 300])
def test_columns_fit_every_width(width: int) -> None:
    shown = table.columns(width)
    names = [column.name for column in shown]
    assert sum(column.width + table.PADDING for column in shown) <= width
    assert {"device", "state", "p95"} <= set(names) and ("spark" in names) == (width >= 100)
    long = ReleaseStatus("f" * 64, "CRITICAL", True, device="x" * 64, model="日本" * 20, why="w" * 500)
    for column, text in zip(shown, table.cells(long, shown, NOW), strict=True):
        assert cell_len(text) <= column.width


def test_a_terminal_of_no_width_has_no_columns() -> None:
    assert table.columns(0) == () and table.columns(30)[0].name == "device"


def test_a_spark_of_what_is_no_number() -> None:
    line = Symbols.spark([1.0, math.inf, -math.inf, math.nan, None, 2.0], 6)
    assert len(line) == 6 and line[1:5] == "    " and line[0] != line[5]
    assert len(Symbols.spark([-1.7e308, 1.7e308, 0.0], 3)) == 3


def test_joined_values_keep_every_peak_and_gap() -> None:
    assert table.joined([1.0, 9.0, 2.0, 3.0, None, None], 3) == [9.0, 3.0, None]
    assert table.joined([1.0, None], 16) == [1.0, None] and table.joined([], 16) == []
