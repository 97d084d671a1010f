"""A run as the screen shows it, looked at again and again from its record, its log and its processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgekit.app.views.run_fold import Fold, RunView
from edgekit.app.views.tail import Tail
from edgekit.base.hardware import available_memory_mib
from edgekit.build import runs

Identity = tuple[int, float]


class RunReader:
    """Looks at the run in a cache again and again; every look reads what is new. One thread at a time."""

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir
        self._of: Identity | None = None
        self._begin()

    def read(self, now: float) -> RunView:
        """The run as it is now. Raises nothing: what cannot be read is said in the view."""
        run = runs.read(self.cache_dir)
        of = _identity(run)
        if of != self._of:
            self._of = of
            self._begin()
        found = self._tail.read()
        if found.anew:
            self._fold = Fold()
        for line in found.lines:
            self._fold.add_line(line)
        self._fold.unread += found.dropped_lines
        self._fold.skipped_bytes += found.skipped_bytes
        view = self._fold.view(run, now)
        if run is not None and view.state == "RUNNING":
            rss = runs.rss_mib(run)
            view = replace(
                view, rss_mib=rss, available_mib=float(available_memory_mib()), ours=runs.is_ours(run)
            )
        notices = [*view.notices, *([found.trouble] if found.trouble else [])]
        if run is None and not view.stages:
            view = replace(view, sentence=f"No build has run in {self.cache_dir} yet.")
        return replace(view, notices=tuple(notices))

    def _begin(self) -> None:
        self._tail, self._fold = Tail(self.cache_dir / runs.EVENTS), Fold()


def _identity(run: runs.Run | None) -> Identity | None:
    return None if run is None else (run.pid, run.started)
