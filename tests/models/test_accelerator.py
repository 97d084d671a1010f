"""Models compute on a GPU what they compute on the processor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CHECKS = Path(__file__).with_name("on_gpu.py")


def test_a_gpu_computes_the_same() -> None:
    """On a pretended GPU, which cannot be taken back: so in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:]
