"""What the terminal app looks at, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.field.fleet.device import Device


@dataclass(frozen=True)
class Settings:
    """Places, devices and times of one sitting.

    `cache_dir` is where builds keep their stages and events, `state` where this device keeps its releases, telemetry and
    incidents, `bundles` where builds write. `window_s` is the time looked at, `every_s` the time between two looks.
    """

    cache_dir: Path = Path(".edgekit/cache")
    state: Path = Path(".edgekit/field")
    bundles: Path = Path("bundles")
    devices: tuple[Device, ...] = ()
    demo: bool = False
    ascii: bool = False
    every_s: float = 1.0
    window_s: float = 900.0
