"""A state folder after a bad hour, for the tests of the incident screen."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def state(hour_copy: Path) -> Path:
    """The folder that a screen shows."""
    return hour_copy
