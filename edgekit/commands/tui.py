"""`edgekit tui`: the terminal app; without a terminal the same as plain text."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.commands import options, shell

if TYPE_CHECKING:
    from edgekit.app.views.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("tui")(tui)


def tui(
    screen: Annotated[
        options.ScreenName, typer.Argument(help="The screen to begin with.")
    ] = options.ScreenName.BUILD,
    device: options.Devices = None,
    fleet: options.FleetFile = None,
    demo: options.Demo = False,
    window: options.WindowTime = "15m",
    every: options.Every = 1.0,
    ascii: options.Ascii = False,
    theme: options.ThemeName = options.Theme.DARK,
    no_tui: options.NoTui = False,
    cache_dir: shell.CacheDir = shell.DEFAULT_CACHE,
    bundles: Annotated[Path, typer.Option("--bundles", help="Where builds are written.")] = Path("bundles"),
    state: shell.StateDir = shell.DEFAULT_STATE,
    verbose: shell.Verbose = False,
) -> None:
    """Build, watch, compare and operate in the terminal, led by screens."""
    from edgekit.base.clock import seconds

    settings = options.settings_of(
        device, fleet, seconds(window), every, ascii=ascii, cache_dir=cache_dir, bundles=bundles, state=state
    )
    if not (no_tui or not options.is_terminal()):
        options.open_app(settings, screen, theme=theme, demo=demo)
    elif demo:
        from edgekit.app.views import demo as recorded

        with tempfile.TemporaryDirectory() as folder:
            plain(screen, recorded.unpack(Path(folder)))
    else:
        plain(screen, settings)


def plain(screen: options.ScreenName, settings: Settings) -> None:
    """What the screen shows, on stdout as text."""
    from edgekit.commands import build, incident, monitor

    match screen:
        case options.ScreenName.MONITOR if settings.devices:
            monitor.glance(settings, once=True, json=False)
        case options.ScreenName.MONITOR:
            monitor.monitor(once=True, window=f"{settings.window_s:.0f}s", state=settings.state)
        case options.ScreenName.INCIDENT:
            incident.list_(state=settings.state)
        case options.ScreenName.RESULTS:
            _plain_results(settings)
        case options.ScreenName.RUN:
            _plain_run(settings)
        case options.ScreenName.BUILD:
            build.plan(cache_dir=settings.cache_dir)


def _plain_results(settings: Settings) -> None:
    from rich.console import Console

    from edgekit.app.views import bundles
    from edgekit.report.table import result_table

    found = bundles.newest(settings.bundles)
    if found is None:
        shell.say(f"There is no bundle in {settings.bundles} yet: edgekit build")
    else:
        Console().print(
            result_table(bundles.read_json(found / bundles.REPORT, found), f"edgekit verify {found}")
        )


def _plain_run(settings: Settings) -> None:
    from edgekit.app.views.run import RunReader
    from edgekit.base.clock import span

    view = RunReader(settings.cache_dir).read(time.time())
    shell.say(f"{view.state}  {view.sentence}".rstrip())
    for stage in view.stages:
        took = "" if stage.seconds is None else span(stage.seconds)
        shell.say(f"  {stage.name:<16} {stage.state:<8} {took:>12}  {stage.counted} {stage.note}".rstrip())
    for line in (*view.notices, *(f"{gate.name} failed: {gate.detail}" for gate in view.failed)):
        shell.say(line)
