"""A power failure at any step of any change leaves a version that answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LEAST_STEPS = {
    "import": 30,
    "import-damaged": 30,
    "promote": 10,
    "boot": 6,
    "boot-damaged": 6,
    "mark-good": 6,
    "verdict": 6,
    "rollback": 6,
    "gc": 20,
}


@pytest.mark.parametrize("plan", LEAST_STEPS)
def test_a_cut_at_any_step_leaves_a_version_that_answers(plan: str, tmp_path: Path) -> None:
    script = Path(__file__).with_name("cut.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), plan], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == []
    assert found["steps"] >= LEAST_STEPS[plan]  # each step was counted, and cut at
