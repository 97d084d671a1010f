"""The default folder for the releases, telemetry and incidents of a device."""

from __future__ import annotations

from pathlib import Path

DEFAULT_STATE = Path(".edgekit/field")
