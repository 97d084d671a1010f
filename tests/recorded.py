"""Run `edgekit ARGS...` and write down which modules each stage declares and which it asks the registry for.

python tests/recorded.py LOG.json build --model ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from edgekit import cli, registry
from edgekit.base.cache import Cache


def main(log: Path, arguments: list[str]) -> None:
    """Run the command; `log` gets `{stage: {"declared": [...], "loaded": [...]}}` of the stages that were made."""
    found: dict[str, dict[str, Any]] = {}
    running: list[str] = []
    load, stage = registry.load, Cache.stage

    def loaded(kind: str, name: str) -> Any:
        for each in running:
            found[each]["loaded"].append(registry.module_of(kind, name))
        return load(kind, name)

    def noted(
        self: Cache, name: str, inputs: Any, run: Callable[[Path, Path], Any], modules: Sequence[str] = (),
        packages: Sequence[str] = (),
    ) -> Any:  # fmt: skip
        @wraps(run)  # the module of `run` is part of the key
        def watched(out: Path, work: Path) -> Any:
            found[name] = {"declared": [*modules], "loaded": []}
            running.append(name)
            try:
                return run(out, work)
            finally:
                running.pop()

        return stage(self, name, inputs, watched, modules, packages)

    registry.load, Cache.stage = loaded, noted  # type: ignore[method-assign]
    try:
        cli.main(arguments)
    finally:
        log.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
