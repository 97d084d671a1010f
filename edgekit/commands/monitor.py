"""`edgekit monitor`: how each release on this device fares, worst first; with `--watch` its rules are held as well."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.commands import shell
from edgekit.errors import EdgekitError

if TYPE_CHECKING:
    from edgekit.incidents.overview import Row
    from edgekit.incidents.watcher import Watcher
    from edgekit.telemetry.store import Store

MARKS = {"LOST": "?", "CRITICAL": "▲", "WARNING": "!", "OK": " ", "IDLE": " "}
STYLES = {"LOST": "bold red", "CRITICAL": "bold red", "WARNING": "yellow", "OK": "green", "IDLE": "dim"}


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("monitor")(monitor)


def monitor(
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    window: Annotated[
        str, typer.Option("--window", metavar="TIME", help="The time looked at: 5m, 1h.")
    ] = "5m",
    every: Annotated[float, typer.Option("--every", min=0.5, help="Seconds between two looks.")] = 5.0,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Hold the rules too and open incidents, while no server does: a watchdog."
        ),
    ] = False,
    webhook: Annotated[
        str | None,
        typer.Option(
            "--webhook", envvar="EDGEKIT_WEBHOOK", help="With --watch: the URL that is told of changes."
        ),
    ] = None,
    state: shell.StateDir = shell.DEFAULT_STATE,
    json: shell.Json = False,
    verbose: shell.Verbose = False,
) -> None:
    """Show requests, speed, memory, temperature, drift and incidents of each release; ctrl-c ends it."""
    from edgekit.incidents.words import seconds
    from edgekit.telemetry.store import Store

    window_s = seconds(window)
    store = Store(state / "telemetry.sqlite")
    watcher = _watcher(state, store, webhook) if watch else None
    try:
        while True:
            now = time.time()
            if watcher is not None:
                try:
                    watcher.once(now)
                except EdgekitError as error:
                    if once:
                        raise
                    sys.stderr.write(f"edgekit: {error.message}\n")  # a watchdog goes on
            _show(state, store, now, window_s, json)
            if once:
                return
            time.sleep(every)
    finally:
        if watcher is not None:
            watcher.close()


def _watcher(state: Path, store: Store, webhook: str | None) -> Watcher:
    """A watcher beside the program that serves, which acts on nothing: going back is for those who serve."""
    from edgekit.incidents.defaults import rules_of
    from edgekit.incidents.overview import current_release, in_use
    from edgekit.incidents.watcher import Watcher
    from edgekit.incidents.webhook import Webhook

    kept = in_use(state)
    return Watcher(
        state,
        rules_of(kept[1] if kept else None),
        windows=_Reader(store),
        release=lambda: current_release(state, store.path) or "",
        bundle=lambda: (in_use(state) or ("", None))[1],
        webhook=Webhook(webhook) if webhook else None,
        owner=False,
    )


class _Reader:
    """The windows of a store that another process writes: what troubles that one is not known here."""

    def __init__(self, store: Store) -> None:
        self.window = store.window


def _show(state: Path, store: Store, now: float, window_s: float, json: bool) -> None:
    from edgekit.incidents.overview import overview

    rows = overview(state, store, now, window_s)
    if json:
        shell.print_json(
            {
                "schema": "edgekit.monitor/1",
                "device": socket.gethostname(),
                "time": now,
                "window_s": window_s,
                "state": rows[0].state if rows else "IDLE",
                "releases": [_document(row, state) for row in rows],
            }
        )
        return
    _print(rows, now, window_s)


def _document(row: Row, state: Path) -> dict[str, Any]:
    from edgekit.incidents.runbook import runbook

    place = None if state == shell.DEFAULT_STATE else state
    found = row.to_dict()
    for incident, entry in zip(row.incidents, found["incidents"], strict=True):
        entry["next_steps"] = [vars(step) for step in runbook(incident, place).steps]
    return found


def _print(rows: Sequence[Row], now: float, window_s: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from edgekit.console import span
    from edgekit.incidents.words import clock

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(f"{socket.gethostname()}  {clock(now, now)}  window {span(window_s)}")
    if not rows:
        console.print("Nothing is recorded here yet: `edgekit serve BUNDLE` records.")
        return
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("", "state", "release"):
        table.add_column(name, no_wrap=True)
    for name in (
        "requests",
        "errors",
        "ttft p95 s",
        "tokens/s",
        "rss MiB",
        "temp °C",
        "confidence",
        "drift",
        "incidents",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            MARKS[row.state],
            f"[{STYLES[row.state]}]{row.state}[/]",
            (row.release or "(model file)") + (" in use" if row.in_use else ""),
            str(row.requests),
            str(row.errors),
            *(
                _number(value, digits)
                for value, digits in (
                    (row.ttft_p95_s, 2), (row.tokens_per_s, 1), (row.rss_mib, 0), (row.temperature_c, 0), (row.confidence, 2),
                )
            ),
            str(len(row.alarms)),
            " ".join(f"#{incident.id}" for incident in row.incidents) or "none",
        )  # fmt: skip
    console.print(table)
    for row in rows:
        if row.state == "LOST" and row.last_seen is not None:
            ago = span(now - row.last_seen)
            console.print(
                f"? {row.release or 'The device'}: last heard of {ago} ago; these are its last numbers."
            )
        for incident in row.incidents:
            mark = MARKS[incident.severity.upper()]
            about = incident.state + (", silenced" if incident.silenced(now) else "")
            console.print(
                f"{mark} #{incident.id} {about}: {incident.what}  edgekit incident show {incident.id}"
            )


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"
