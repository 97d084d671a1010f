"""Cut each change of the releases at each of its steps, as a power failure would, and see what is left.

python cut.py FOLDER PLAN     prints {"steps": ..., "faults": [...]}
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from field.releases import bundles

from edgekit.base.errors import ConfigError
from edgekit.device.manifest import read_manifest
from edgekit.field.releases import Releases, disk


def bring(releases: Releases, text: str) -> str:
    source = releases.root.parent / "bundles" / text
    return releases.import_(source, health=bundles.fit).name


def promote(releases: Releases, text: str) -> None:
    releases.promote(bring(releases, text), health=bundles.fit, compare=bundles.same, allow=["older"])


def use(releases: Releases, text: str) -> None:
    promote(releases, text)
    releases.mark_good()


def two_used(releases: Releases) -> None:
    use(releases, "one")
    use(releases, "two")


def two_tried(releases: Releases) -> None:
    use(releases, "one")
    promote(releases, "two")


def damaged(releases: Releases) -> None:
    """Two versions in use, of which the current one has a damaged file."""
    two_used(releases)
    (Path(str(releases.current())) / "model.gguf").write_bytes(b"nothing")


def three_used(releases: Releases) -> None:
    two_used(releases)
    use(releases, "three")


PLANS: dict[str, tuple[Callable[[Releases], object], Callable[[Releases], object]]] = {
    "import": (lambda releases: use(releases, "one"), lambda releases: bring(releases, "two")),
    "import-damaged": (damaged, lambda releases: bring(releases, "two")),
    "promote": (lambda releases: (use(releases, "one"), bring(releases, "two")), lambda r: promote(r, "two")),
    "boot": (two_tried, lambda releases: releases.boot()),
    "boot-damaged": (damaged, lambda releases: releases.boot()),
    "mark-good": (two_tried, lambda releases: releases.mark_good()),
    "verdict": (two_tried, lambda releases: releases.verdict("bad")),
    "rollback": (two_used, lambda releases: releases.rollback()),
    "gc": (three_used, lambda releases: releases.gc(keep=1)),
}


class Cut:
    """Ends this process at one step; what was written and not yet flushed is half there then."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.step = 0
        self.unflushed: dict[Path, int] = {}
        self.flushing: Path | None = None

    def __call__(self, step: str, path: Path) -> None:
        if self.flushing is not None:
            self.unflushed.pop(self.flushing, None)
        self.flushing = None
        if self.step == self.at:
            for file, whole in self.unflushed.items():
                if file.exists():
                    os.truncate(file, whole + (file.stat().st_size - whole) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.step += 1
        if step in ("write", "append"):
            self.unflushed.setdefault(path, path.stat().st_size if step == "append" and path.exists() else 0)
        elif step == "fsync":
            self.flushing = path


def cut(root: Path, act: Callable[[Releases], object], at: int) -> bool:
    """Whether there was a step `at` to be cut at."""
    child = os.fork()
    if child == 0:
        try:
            disk.before = Cut(at)
            act(Releases(root))
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - a child must never go on as the parent
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the change failed by itself")
    return os.WIFSIGNALED(status)


def look(root: Path) -> None:
    """Raise unless a whole version answers, every command works, and nothing unfinished is left after collection."""
    releases = Releases(root)
    releases.store.check(releases.boot().name)
    releases.mark_good()  # one on trial is the version that answered
    use(releases, "one")
    use(releases, "two")
    releases.promote(bring(releases, "three"), health=bundles.fit, compare=bundles.same, allow=["older"])
    releases.store.check(releases.boot().name)
    releases.mark_good()
    assert releases.rollback().name == bring(releases, "two")
    try:
        releases.rollback()
    except ConfigError as error:
        raise AssertionError(error.message) from error
    releases.gc(keep=1)
    answering = releases.boot()
    releases.store.check(answering.name)
    serials = [line["serial"] for line in releases.log()]
    assert serials == list(range(1, len(serials) + 1)), f"the log lost a line: {serials}"
    assert [path.name for path in releases.store.versions.iterdir()] == [answering.name]
    assert [path.name for path in releases.store.records.iterdir()] == [answering.name]
    files = read_manifest(answering)["files"]
    kept = {entry["sha256"] for entry in files if not entry["path"].startswith("onnx/")}
    assert {path.name for path in releases.store.objects.iterdir()} == kept


def main() -> None:
    folder, plan = Path(sys.argv[1]), sys.argv[2]
    os.fsync = lambda handle: None  # a process that dies takes nothing of the system's memory with it
    before, act = PLANS[plan]
    for text in ("one", "two", "three"):
        bundles.write(folder / "bundles" / text, text)
    before(Releases(folder / "before"))
    faults, at = [], 0
    while True:
        root = folder / "releases"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(folder / "before", root)
        if not cut(root, act, at):
            break
        try:
            look(root)
        except Exception as error:  # noqa: BLE001 - each is told
            faults.append(f"cut at step {at}: {type(error).__name__}: {error}")
        at += 1
    print(json.dumps({"steps": at, "faults": faults}))


if __name__ == "__main__":
    main()
