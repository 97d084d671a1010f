"""Where a device keeps its releases, telemetry and incidents unless it is told otherwise."""

from __future__ import annotations

from pathlib import Path

DEFAULT_STATE = Path(".edgekit/field")
