"""Options and start of the terminal app, shared by `edgekit tui` and `edgekit monitor`."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.app.views.settings import Settings
    from edgekit.field.fleet.device import Device


class ScreenName(StrEnum):
    """The screens of the app."""

    BUILD = "build"
    RUN = "run"
    RESULTS = "results"
    MONITOR = "monitor"
    INCIDENT = "incident"


class Theme(StrEnum):
    """Colour themes."""

    DARK = "dark"
    LIGHT = "light"
    MONO = "mono"


THEMES = {Theme.DARK: "textual-dark", Theme.LIGHT: "textual-light", Theme.MONO: "textual-dark"}

Every = Annotated[float, typer.Option("--every", min=0.5, help="Refresh interval in seconds.")]
Window = Annotated[str, typer.Option("--window", metavar="TIME", help="Time window, e.g. 5m or 1h.")]


@dataclass(frozen=True)
class AppOptions:
    """The options of the terminal app."""

    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            metavar="NAME=WHERE",
            help="Another device: the URL of its `edgekit serve`, or ssh:USER@HOST[:STATE]. Can be repeated.",
        ),
    ] = None
    fleet: Annotated[Path | None, typer.Option("--fleet", help="A TOML file that names devices.")] = None
    window: Window = "15m"
    every: Every = 1.0
    demo: Annotated[
        bool, typer.Option("--demo", help="Show a recorded build and a recorded day of a device instead.")
    ] = False
    ascii: Annotated[bool, typer.Option("--ascii", help="Use ASCII characters only.")] = False
    theme: Annotated[
        Theme, typer.Option("--theme", help="Colour theme; NO_COLOR=1 also removes colours.")
    ] = Theme.DARK
    no_tui: Annotated[bool, typer.Option("--no-tui", help="Print plain text, as without a terminal.")] = False
    state: shell.StateDir = shell.DEFAULT_STATE
    verbose: shell.Verbose = False

    @property
    def window_s(self) -> float:
        """The time window in seconds. Raises `ConfigError` for a malformed one."""
        from edgekit.base.clock import seconds

        return seconds(self.window)

    def devices(self) -> tuple[Device, ...]:
        """The other devices. Raises `ConfigError` for malformed ones."""
        from edgekit.field.fleet.device import check_names, parse_device, read_fleet

        known = (*(read_fleet(self.fleet) if self.fleet else ()), *map(parse_device, self.device or ()))
        check_names(known)
        return known

    def settings(self, **more: Any) -> Settings:
        """The settings of the app, with the fields in `more`. Raises `ConfigError` for malformed devices."""
        from edgekit.app.views.settings import Settings

        return Settings(
            devices=self.devices(),
            window_s=self.window_s,
            every_s=self.every,
            ascii=self.ascii,
            state=self.state,
            **more,
        )


def is_terminal() -> bool:
    """Whether stdin and stdout are an interactive terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def open_app(settings: Settings, screen: str, options: AppOptions) -> None:
    """Run the app until the person leaves; with `--demo` on recorded data in a temporary folder."""
    if options.theme is Theme.MONO:
        os.environ["NO_COLOR"] = "1"  # before Textual is imported
    for name in ("COLUMNS", "LINES"):  # if they are set, the app does not notice when its terminal is resized
        os.environ.pop(name, None)
    from edgekit import registry

    app_class: Any = registry.load("apps", "tui")
    if not options.demo:
        app = app_class(settings, str(screen))
        app.theme = THEMES[options.theme]
        app.run()
        return
    from dataclasses import replace

    from edgekit.app.views.demo import unpack
    from edgekit.app.views.demo_replay import replay

    with tempfile.TemporaryDirectory(prefix="edgekit-demo-") as folder:
        found = unpack(Path(folder))
        shown = replace(found, ascii=settings.ascii, every_s=settings.every_s, window_s=settings.window_s)
        with replay(shown) as playing:
            app = app_class(playing, str(screen))
            app.theme = THEMES[options.theme]
            app.run()
