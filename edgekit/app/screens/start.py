"""Starting a build from a screen: asked once, in a process of its own, then watched; or why it did not start."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgekit.app.screens.base import View
from edgekit.app.screens.dialogs import Confirm, Sheet
from edgekit.app.screens.threads import from_thread
from edgekit.app.views import wizard
from edgekit.app.views.launch import launch
from edgekit.app.views.wizard import Choice
from edgekit.base.command import Outcome
from edgekit.build import runs

NOT_STARTED = "The build did not start"


async def start(screen: View, choice: Choice, plan: Outcome | None, busy: Callable[[bool], object]) -> None:
    """Ask whether to build `choice`, or to watch the build that runs in its cache already, and do that.

    `busy` is told when the start begins and ends.
    """
    app, run = screen.edgekit, runs.read(choice.cache_dir)
    if run is not None and run.state == "RUNNING":
        text = f"A build of {run.model} for {run.target} runs here already. Watch it?"
        if await app.push_screen_wait(Confirm(text)):
            app.go("run")
        return
    found = wizard.planned(plan)
    takes = f"takes about {wizard.minutes(found)} min" if found else "takes a while"
    size = (found or {}).get("download_mib", 0)
    fetch = f"{size:,} MiB of weights are downloaded from the hub first.\n" if size else ""
    text = f"Build it? It {takes}, and continues after you close the app.\n{fetch}\n$ {choice.build.text}"
    if not await app.push_screen_wait(Confirm(text)):
        return
    busy(True)
    begin = partial(launch, choice.build, choice.cache_dir, gone=lambda: not app.is_running)
    why = await from_thread(screen, begin)
    busy(False)
    here = screen.is_active  # else a question is open, or another screen
    if why and here:
        app.push_screen(Sheet(NOT_STARTED, why))
    elif why:
        app.notify(why, title=NOT_STARTED, severity="error", timeout=20, markup=False)
    elif here:
        app.go("run")
    else:
        app.notify("The build is running: press 2 to watch it.")
