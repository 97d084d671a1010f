"""The status of devices as a table, for `edgekit monitor` and the plain form of the terminal app."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edgekit.base.clock import clock, span
from edgekit.base.texts import one_line
from edgekit.field.status import DeviceStatus, ReleaseStatus, worst_first

MARKS = {"LOST": "?", "CRITICAL": "▲", "WARNING": "!", "OK": " ", "IDLE": " "}
STYLES = {"LOST": "bold red", "CRITICAL": "bold red", "WARNING": "yellow", "OK": "green", "IDLE": "dim"}
NUMBERS = (
    "requests", "errors", "ttft p95 s", "tokens/s", "rss MiB", "temp °C", "confidence", "drift", "incidents",
)  # fmt: skip
WIDTH = 140  # where stdout is no terminal


def print_status(devices: Sequence[DeviceStatus]) -> None:
    """Print the releases of all `devices`, worst first, then what is wrong and what to do about it."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    now, many = max(device.time for device in devices), len(devices) > 1
    name = f"{len(devices)} devices" if many else _safe(devices[0].device)
    console.print(f"{name}  {clock(now, now)}  window {span(devices[0].window_s)}")
    rows = worst_first((row for device in devices for row in device.releases), now)
    if not rows:
        console.print("There is no telemetry yet. Start a server: edgekit serve BUNDLE")
        return
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for title in ("", "state", *(["device"] if many else []), "release"):
        table.add_column(title, no_wrap=True)
    for title in NUMBERS:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            MARKS[row.state],
            f"[{STYLES[row.state]}]{row.state}[/]",
            *([_safe(row.device)] if many else []),
            (_safe(row.release) or "(model file)") + (" in use" if row.in_use else ""),
            *_numbers(row),
        )
    console.print(table)
    for row in rows:
        for line in _notes(row, now, f"{_safe(row.device)} " if many else ""):
            console.print(line)


def _numbers(row: ReleaseStatus) -> Iterator[str]:
    yield str(row.requests)
    yield str(row.errors)
    measured = (
        (row.ttft_p95_s, 2), (row.tokens_per_s, 1), (row.rss_mib, 0), (row.temperature_c, 0), (row.confidence, 2),
    )  # fmt: skip
    for value, digits in measured:
        yield "n/a" if value is None else f"{value:.{digits}f}"
    yield str(row.drift)
    yield " ".join(f"#{incident.id}" for incident in row.incidents) or "none"


def _notes(row: ReleaseStatus, now: float, device: str) -> Iterator[str]:
    """A line for a lost device, and one for each open incident."""
    if row.state == "LOST":
        why = _safe(row.why)
        if row.trouble_since is not None and not why.startswith("last heard"):
            why = f"last heartbeat {span(max(0.0, now - row.trouble_since))} ago; {why}"
        yield f"? {device}{_safe(row.release) or 'The device'}: {why}. {_safe(row.hint)}".rstrip()
    for incident in row.incidents:
        about = incident.state + (", silenced" if incident.silenced(now) else "")
        mark = MARKS.get(incident.severity.upper(), "!")
        yield (
            f"{mark} {device}#{incident.id} {about}: {_safe(incident.what)}  edgekit incident show {incident.id}"
        )


def _safe(text: str) -> str:
    return escape(one_line(text))
