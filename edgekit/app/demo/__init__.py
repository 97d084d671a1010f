"""A recorded build and a recorded day of a device, for looking before there is a model; `tools/record_demo.py` makes it."""

from __future__ import annotations

import gzip
import json
from importlib import resources
from typing import Any

SCHEMA = "edgekit.demo/1"
PARTS = ("build", "bundle", "day")


def read(part: str) -> dict[str, Any]:
    """One part of the recording: `build` (events), `bundle` (files) or `day` (what the stores of a device held)."""
    packed = resources.files(__name__).joinpath(f"{part}.json.gz").read_bytes()
    document: dict[str, Any] = json.loads(gzip.decompress(packed))
    assert document["schema"] == SCHEMA
    return document
