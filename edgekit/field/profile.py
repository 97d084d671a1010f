"""The speed that the build measured for a bundle, if it was measured on a machine like this one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgekit.base.hardware import fingerprint

SAME_MACHINE = ("cpu", "arch", "cores", "features")  # of the fingerprint: what speed depends on


def profiled(bundle: Path, path: str, threads: int) -> dict[str, Any]:
    """The entry of `report.json` for the file or folder `path`, at the thread count nearest to `threads`.

    Empty when the report describes another machine or a simulated one, or cannot be read.
    """
    try:
        report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
        here, there = fingerprint(), report["machine"]
        if any(there.get(key, here[key]) != here[key] for key in SAME_MACHINE):
            return {}
        found = [
            entry
            for entry in report["profile"]
            if entry["artifact"] == Path(path).name
            and not entry.get("simulated")
            and entry["ttft_ms"]["median"] > 0
        ]
        return min(found, key=lambda entry: abs(entry["threads"] - threads), default={})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
