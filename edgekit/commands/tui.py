"""`edgekit tui`: the terminal app; without a terminal the same as plain text."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.app.views.settings import Settings


class ScreenName(StrEnum):
    """The screens."""

    BUILD = "build"
    RUN = "run"
    RESULTS = "results"
    MONITOR = "monitor"
    INCIDENT = "incident"


class Theme(StrEnum):
    """How it looks."""

    DARK = "dark"
    LIGHT = "light"
    MONO = "mono"


THEMES = {Theme.DARK: "textual-dark", Theme.LIGHT: "textual-light", Theme.MONO: "textual-dark"}

Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME=WHERE",
        help="Another device: the URL of its `edgekit serve`, or ssh:USER@HOST[:STATE]. May be given again.",
    ),
]
FleetFile = Annotated[Path | None, typer.Option("--fleet", help="A TOML file that names devices.")]
Demo = Annotated[
    bool, typer.Option("--demo", help="Show a recorded build and a recorded day of a device instead.")
]
Ascii = Annotated[bool, typer.Option("--ascii", help="Draw with ASCII alone.")]
NoTui = Annotated[bool, typer.Option("--no-tui", help="Plain text, as without a terminal.")]
ThemeName = Annotated[Theme, typer.Option("--theme", help="Colours; NO_COLOR=1 takes them away too.")]
Every = Annotated[float, typer.Option("--every", min=0.5, help="Seconds between two looks.")]
WindowTime = Annotated[str, typer.Option("--window", metavar="TIME", help="The time looked at: 5m, 1h.")]


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("tui")(tui)


def tui(
    screen: Annotated[ScreenName, typer.Argument(help="The screen to begin with.")] = ScreenName.BUILD,
    device: Devices = None,
    fleet: FleetFile = None,
    demo: Demo = False,
    window: WindowTime = "15m",
    every: Every = 1.0,
    ascii: Ascii = False,
    theme: ThemeName = Theme.DARK,
    no_tui: NoTui = False,
    cache_dir: shell.CacheDir = shell.DEFAULT_CACHE,
    bundles: Annotated[Path, typer.Option("--bundles", help="Where builds are written.")] = Path("bundles"),
    state: shell.StateDir = shell.DEFAULT_STATE,
    verbose: shell.Verbose = False,
) -> None:
    """Build, watch, compare and operate in the terminal, led by screens."""
    from edgekit.base.clock import seconds

    settings = settings_of(
        device, fleet, seconds(window), every, ascii=ascii, cache_dir=cache_dir, bundles=bundles, state=state
    )
    if not (no_tui or not is_terminal()):
        open_app(settings, screen, theme=theme, demo=demo)
    elif demo:
        from edgekit.app.views import demo as recorded

        with tempfile.TemporaryDirectory() as folder:
            plain(screen, recorded.unpack(Path(folder)))
    else:
        plain(screen, settings)


def settings_of(
    devices: list[str] | None, fleet: Path | None, window_s: float, every_s: float, **more: Any
) -> Settings:
    """What was typed, as settings, with `more` of their fields; raises `ConfigError` for devices that are none."""
    from edgekit.app.views.devices import check_names, parse_device, read_fleet
    from edgekit.app.views.settings import Settings

    known = (*(read_fleet(fleet) if fleet else ()), *map(parse_device, devices or ()))
    check_names(known)
    return Settings(devices=known, window_s=window_s, every_s=every_s, **more)


def is_terminal() -> bool:
    """Whether a person can see and type here."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def open_app(settings: Settings, screen: str, *, theme: Theme = Theme.DARK, demo: bool = False) -> None:
    """Run the app until the person leaves; with `demo` on recorded data in a temporary folder."""
    if theme is Theme.MONO:
        os.environ["NO_COLOR"] = "1"  # before Textual is imported
    for name in ("COLUMNS", "LINES"):  # where they are exported, the app would never see its terminal resized
        os.environ.pop(name, None)
    from edgekit import registry

    app_class: Any = registry.load("apps", "tui")
    if not demo:
        app = app_class(settings, str(screen))
        app.theme = THEMES[theme]
        app.run()
        return
    from dataclasses import replace

    from edgekit.app.views import demo as recorded

    with tempfile.TemporaryDirectory(prefix="edgekit-demo-") as folder:
        found = recorded.unpack(Path(folder))
        shown = replace(found, ascii=settings.ascii, every_s=settings.every_s, window_s=settings.window_s)
        with recorded.Replay(shown) as replay:
            app = app_class(replay.settings, str(screen))
            app.theme = THEMES[theme]
            app.run()


def plain(screen: ScreenName, settings: Settings) -> None:
    """What the screen shows, on stdout as text."""
    from edgekit.commands import build, incident, monitor

    match screen:
        case ScreenName.MONITOR if settings.devices:
            monitor.glance(settings, once=True, json=False)
        case ScreenName.MONITOR:
            monitor.monitor(once=True, window=f"{settings.window_s:.0f}s", state=settings.state)
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
    from edgekit.app.views.run import Watch
    from edgekit.base.clock import span

    view = Watch(settings.cache_dir).look(time.time())
    shell.say(f"{view.state}  {view.sentence}".rstrip())
    for stage in view.stages:
        took = "" if stage.seconds is None else span(stage.seconds)
        shell.say(f"  {stage.name:<16} {stage.state:<8} {took:>12}  {stage.counted} {stage.note}".rstrip())
    for line in (*view.notices, *(f"{gate.name} failed: {gate.detail}" for gate in view.failed)):
        shell.say(line)
