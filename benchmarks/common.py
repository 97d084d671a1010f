"""What the benchmarks share."""

from __future__ import annotations

import sys
from pathlib import Path


def newest_merge() -> Path:
    """The merged folder of the last build in `.edgekit/cache`."""
    folders = [path.parent for path in Path(".edgekit/cache/merge").glob("*/stage.json")]
    if not folders:
        sys.exit("There is no merged model: run `make demo` first, or name a folder.")
    return max(folders, key=lambda folder: folder.stat().st_mtime)
