"""What an interrupted command ends with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_an_interrupt_in_a_text_run_as_code_ends_with_the_exit_code(tmp_path: Path) -> None:
    """Python would end by the signal, also where the exception was handled."""
    (tmp_path / "interrupted.py").write_text(
        "from edgekit import cli\ncli.app = lambda *_, **__: exec('raise KeyboardInterrupt')\ncli.main([])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 130 and "Interrupted." in done.stderr
