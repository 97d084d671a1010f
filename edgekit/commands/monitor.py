"""`edgekit monitor`: the status of each release on this device, worst first; `--watch` also evaluates its alert rules."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.base.errors import ConfigError, EdgekitError
from edgekit.commands import shell
from edgekit.commands.options import AppOptions, Every, ScreenName, Window, is_terminal, open_app

if TYPE_CHECKING:
    from edgekit.field.fleet.device import Device
    from edgekit.field.incidents.watcher import Watcher
    from edgekit.field.telemetry.store import Store

WEBHOOK = "EDGEKIT_WEBHOOK"


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("monitor")(monitor)


@dataclass(frozen=True)
class MonitorOptions(AppOptions):
    """The options of `edgekit monitor`."""

    window: Window = "5m"
    every: Every = 2.0
    once: Annotated[bool, typer.Option("--once", help="Print once and exit; --json always does.")] = False
    watch: Annotated[
        bool, typer.Option("--watch", help="Also evaluate alert rules when no server is running.")
    ] = False
    webhook: Annotated[
        str | None,
        typer.Option(
            "--webhook", envvar=WEBHOOK, help="With --watch: a URL that receives each change of an incident."
        ),
    ] = None
    json: shell.Json = False


@shell.takes(MonitorOptions)
def monitor(options: MonitorOptions) -> None:
    """Show requests, speed, memory, temperature, drift and incidents of each device and release, worst first.

    In a terminal this opens the fourth screen of the app (`edgekit tui monitor`). Press ctrl-c to end the plain form.
    """
    typed = options.webhook is not None and options.webhook != os.environ.get(WEBHOOK)
    if (options.watch or typed) and (options.device or options.fleet or options.demo):
        raise ConfigError(
            "--watch and --webhook are for this device alone, not for --device, --fleet or --demo; nothing was started.",
            "Start `edgekit monitor --watch` on each of those devices.",
        )
    devices, once = options.devices(), options.once or options.json
    if not (devices or options.demo or options.watch):  # a watcher may be started before the first server
        shell.present(options.state)
    if is_terminal() and not (once or options.watch or options.no_tui):
        open_app(options.settings(), ScreenName.MONITOR, options)
    elif options.demo:
        from edgekit.app.views.demo import unpack

        with tempfile.TemporaryDirectory() as folder:
            print_here(replace(options, state=unpack(Path(folder)).state, once=True))
    elif devices:
        print_fleet(options, devices)
    else:
        print_here(options)


def print_here(options: MonitorOptions) -> None:
    """The status of this device, printed every few seconds or once; with `watch` its rules are evaluated too."""
    from edgekit.field.telemetry.store import FILE, Store

    state, window_s, once = options.state, options.window_s, options.once or options.json
    store = Store(state / FILE)
    watcher = _watcher(state, store, options.webhook) if options.watch else None
    try:
        while True:
            now = time.time()
            try:
                if watcher is not None:
                    watcher.once(now)
                _show(state, store, now, window_s, options.json)
            except EdgekitError as error:
                if once:
                    raise
                sys.stderr.write(f"edgekit: {error.message}\n")  # continue to monitor
            if once:
                return
            time.sleep(options.every)
    finally:
        if watcher is not None:
            watcher.close()


def _watcher(state: Path, store: Store, webhook: str | None) -> Watcher:
    """A watcher outside the serving process; it takes no automatic action, because only the server may roll back."""
    from edgekit.field.incidents.defaults import rules_of
    from edgekit.field.incidents.watcher import Reactions, Watched, Watcher
    from edgekit.field.incidents.webhook import Webhook
    from edgekit.field.status import current_release, in_use

    kept = in_use(state)
    return Watcher(
        state,
        rules_of(kept[1] if kept else None),
        Watched(
            store,
            release=lambda: current_release(state, store) or "",
            bundle=lambda: (in_use(state) or ("", None))[1],
        ),
        Reactions(Webhook(webhook) if webhook else None),
        owner=False,
    )


def print_fleet(options: MonitorOptions, devices: Sequence[Device]) -> None:
    """The status of this device and of others; each device is asked once per refresh."""
    from edgekit.commands.status_table import print_status
    from edgekit.field.fleet.fleet import Fleet

    fleet = Fleet(options.state, devices, every_s=options.every, window_s=options.window_s)
    fleet.start()
    try:
        while True:
            seen = fleet.settled()
            if options.json:
                shell.print_json(seen.to_dict())
            elif seen.devices:
                print_status(seen.devices)
            else:
                shell.say(seen.empty)
            if options.once or options.json:
                return
            time.sleep(options.every)
    finally:
        fleet.close()


def _show(state: Path, store: Store, now: float, window_s: float, json: bool) -> None:
    from edgekit.commands.status_table import print_status
    from edgekit.field.status import device_status

    status = device_status(state, store, now, window_s)
    if json:
        shell.print_json(status.to_dict())
    else:
        print_status([status])
