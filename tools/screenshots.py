"""Draw every screen of the terminal app for the docs: `make screenshots` writes docs/screens/ anew.

The screens show the recorded build and day of `edgekit tui --demo`, at 80x24 and 160x50; light, monochrome and ASCII once.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.app.views.demo import unpack
from edgekit.app.views.demo_replay import replay
from edgekit.tui import EdgekitApp

SIZES = ((80, 24), (160, 50))
FONTS = re.compile(
    r"@font-face\s*{.*?}", re.DOTALL
)  # fetched from the network: a page of ours fetches nothing


@dataclass(frozen=True)
class Shot:
    """A screen, keys pressed there, and how long it may take until it is drawn whole."""

    name: str
    screen: str
    keys: Sequence[str] = ()
    wait_s: float = 3.0
    theme: str = "textual-dark"
    ascii: bool = False


SHOTS = (
    Shot("build", "build"),
    Shot("build-review", "build", ("enter",) * 4, 8.0),
    Shot("run", "run", wait_s=25.0),
    Shot("results", "results"),
    Shot("samples", "results", ("s",)),
    Shot("monitor", "monitor", ("down",), 10.0),
    Shot("incident", "incident", ("enter",)),
    Shot("help", "monitor", ("question_mark",)),
    Shot("monitor-light", "monitor", wait_s=8.0, theme="textual-light"),
    Shot("monitor-ascii", "monitor", wait_s=8.0, ascii=True),
)


def main() -> int:
    """Write the SVG files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/screens"))
    parser.add_argument("--only", nargs="*", default=[], help="names of screens")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for shot in SHOTS:
        if arguments.only and shot.name not in arguments.only:
            continue
        for size in SIZES:
            path = arguments.out / f"{shot.name}-{size[0]}x{size[1]}.svg"
            path.write_text(asyncio.run(draw(shot, size)), encoding="utf-8")
            print(path, flush=True)
    return 0


async def draw(shot: Shot, size: tuple[int, int]) -> str:
    """The screen as SVG."""
    folder = Path(".edgekit/screens")  # a path that stands on the pictures
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        settings = replace(unpack(folder, time.time()), ascii=shot.ascii, window_s=86_400.0)
        with replay(settings) as playing:
            app: Any = EdgekitApp(playing, shot.screen)
            app.theme = shot.theme
            async with app.run_test(size=size) as pilot:
                await pilot.pause(2.0)
                for key in shot.keys:
                    await pilot.press(key)
                    await pilot.pause(0.7)
                await pilot.pause(shot.wait_s)
                return FONTS.sub("", app.export_screenshot(title=f"edgekit {shot.screen}"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
