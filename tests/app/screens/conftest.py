"""A state folder after a bad hour, for the tests of the incident screen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from field_state import FAILING, HOT, SLOW, bad_hour


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A state folder after a bad hour, and the releases before and after the switch. Only for copying."""
    state = tmp_path_factory.mktemp("hour") / "state"
    return (state, *bad_hour(state, rules=(SLOW, FAILING, HOT), hot=True))


@pytest.fixture
def state(hour: tuple[Path, str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(hour[0], tmp_path / "state"))
