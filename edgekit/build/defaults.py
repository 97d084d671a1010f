"""The default options of a build."""

from __future__ import annotations

from pathlib import Path

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_DATA = "demo"
DEFAULT_TARGET = "cpu-int4"
DEFAULT_CACHE = Path(".edgekit/cache")
ROBUST_TIME = 1.4  # times that robust tuning takes beside plain tuning: benchmarks/robustness.md
