"""The folder for the releases, telemetry and incidents of a device: its default, and its option."""

from __future__ import annotations

from pathlib import Path

DEFAULT_STATE = Path(".edgekit/field")


def state_option(state: Path) -> tuple[str, ...]:
    """The option that names a state folder, where it is not the default."""
    return () if state == DEFAULT_STATE else ("--state", str(state))
