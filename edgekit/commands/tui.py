"""`edgekit tui`: the terminal app; without a terminal the same as plain text."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.build import defaults
from edgekit.commands import shell
from edgekit.commands.options import AppOptions, ScreenName, is_terminal, open_app

if TYPE_CHECKING:
    from edgekit.app.views.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("tui")(tui)


@dataclass(frozen=True)
class TuiOptions(AppOptions):
    """The options of `edgekit tui`."""

    screen: Annotated[ScreenName, typer.Argument(help="The screen to begin with.")] = ScreenName.BUILD
    cache_dir: shell.CacheDir = defaults.DEFAULT_CACHE
    bundles: Annotated[Path, typer.Option("--bundles", help="Folder of the builds.")] = Path("bundles")


@shell.takes(TuiOptions)
def tui(options: TuiOptions) -> None:
    """Open the terminal app: build, watch a build, compare results, monitor devices, handle incidents."""
    settings = options.settings(cache_dir=options.cache_dir, bundles=options.bundles)
    if is_terminal() and not options.no_tui:
        open_app(settings, options.screen, options)
    elif options.demo:
        from edgekit.app.views.demo import unpack

        with tempfile.TemporaryDirectory() as folder:
            plain(options, unpack(Path(folder)))
    else:
        plain(options, settings)


def plain(options: TuiOptions, settings: Settings) -> None:
    """What the screen shows, on stdout as text."""
    from edgekit.commands import build, incident, monitor

    match options.screen:
        case ScreenName.MONITOR:
            shown = monitor.MonitorOptions(
                window=options.window, every=options.every, state=settings.state, once=True
            )
            if settings.devices:
                monitor.print_fleet(shown, settings.devices)
            else:
                monitor.print_here(shown)
        case ScreenName.INCIDENT:
            incident.list_(state=settings.state)
        case ScreenName.RESULTS:
            _plain_results(settings)
        case ScreenName.RUN:
            _plain_run(settings)
        case ScreenName.BUILD:
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
