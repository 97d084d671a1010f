"""The life of a release: imported, put on trial, marked good, rolled back, collected.

              promote            mark_good
    imported ─────────► pending ───────────► current ──► previous
                           │  out of tries,     │  rollback,
                           ▼  verdict           ▼  verdict
                          bad                  bad               and the version before answers again

A version on trial already answers requests; until it is marked good, each start uses one of its tries.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgekit.base.errors import ConfigError, CorruptError, EdgekitError, GateError, StageError, reason
from edgekit.device.manifest import release_name
from edgekit.field.incidents.audit import Audit, operator
from edgekit.field.releases import disk
from edgekit.field.releases.release import Place, Release, older
from edgekit.field.releases.slots import Journal, Slots
from edgekit.field.releases.store import Store, read_checked

if TYPE_CHECKING:
    from edgekit.field.releases.compare import Comparison
    from edgekit.field.releases.health import Health

Check = Callable[[Path], "Health"]
Compare = Callable[[Path, Path], "Comparison"]
Allowance = Literal["older", "unproven"]
ITSELF = "edgekit"
AUDITED = frozenset({"import", "promote", "refuse", "rollback", "verdict", "gc"})


def check_golden(bundle: Path) -> Health:
    """The default health check of an import: digests and golden answers."""
    from edgekit.field.releases import health

    return health.check(bundle, speed=False)


def check_health(bundle: Path) -> Health:
    """The default health check of a promotion: digests, golden answers, speed and memory."""
    from edgekit.field.releases import health

    return health.check(bundle)


def compare_answers(candidate: Path, current: Path) -> Comparison:
    """The default comparison of a promotion, without rows."""
    from edgekit.field.releases import compare

    return compare.compare(candidate, current)


class Releases:
    """The releases in the folder `root`, such as `.edgekit/field/releases`; changes are in the audit log beside it.

    Reading takes no lock. One process at a time makes changes; long ones (import, gc) hold a lock of their own, so that
    a starting server never waits for them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self.journal = Journal(root)
        self.audit = Audit(root.parent)

    # Reading

    def list(self) -> Sequence[Release]:
        """Every version on this device, the newest import first."""
        slots = self.journal.read()
        found = [self._release(name, slots) for name in self.store.names()]
        return sorted(found, key=lambda release: (-release.number, -release.imported))

    def get(self, release: str) -> Release:
        """One version by its name or a unique prefix of it; raises `ConfigError` when none or several match."""
        fits = [name for name in self.store.names() if release and name.startswith(release)]
        if len(fits) != 1:
            what = f"Several releases begin with '{release}'" if fits else f"There is no release '{release}'"
            raise ConfigError(f"{what}; nothing was changed.", "`edgekit releases list` shows their names.")
        return self._release(fits[0], self.journal.read())

    def current(self) -> Path | None:
        """The bundle that answers now, which may be on trial; takes one `stat` when nothing has changed."""
        active = self.journal.read().active
        return None if active is None else self.store.folder(active)

    def pending(self) -> str | None:
        """The version on trial."""
        return self.journal.read().pending

    def log(self) -> Sequence[dict[str, Any]]:
        """Every change, oldest first: time, who, what, release, why."""
        return self.journal.lines()

    # Changing

    def import_(
        self,
        bundle: Path,
        *,
        who: str = "",
        why: str = "",
        allow_failed: bool = False,
        health: Check = check_golden,
    ) -> Release:
        """Import a bundle: check its manifest, digests and verdict, copy it, and check the copy with `health`.

        Raises `CorruptError` for a damaged bundle, and `GateError` for one that did not pass its build or gives other
        answers than at build time; the store is then unchanged. A bundle that was imported before is left as it is.
        """
        data, manifest = read_checked(bundle)
        if manifest["verdict"] != "pass" and not allow_failed:
            raise GateError(
                f"{bundle} did not pass its own gates; nothing was imported.",
                f"See {bundle / 'report.html'}; to import it anyway, add --allow-failed.",
            )

        def prove(folder: Path) -> None:
            found = health(folder)
            if not found.passed and not (allow_failed and found.kind == "verdict"):
                corrupt = found.kind in ("digest", "crash", "timeout")
                raise (CorruptError if corrupt else GateError)(
                    f"{bundle} failed its health check: {found.reason}; nothing was imported.",
                    f"`edgekit verify {bundle}` shows every check.",
                )
            number = self.journal.serial() + 1
            self.store.note(name, "import", {"time": time.time(), "number": number, "from": str(bundle)})

        name = release_name(data)
        with self._writing("import.lock"):
            if name not in self.store.names() or self.store.holds(name):
                self.store.add(bundle, data, manifest, prove)
                self._change(lambda slots: slots, what="import", release=name, who=who, why=why)
        return self.get(name)

    def promote(
        self,
        release: str,
        *,
        who: str = "",
        why: str = "",
        health: Check = check_health,
        compare: Compare = compare_answers,
        allow: Collection[Allowance] = (),
    ) -> Release:
        """Put a version on trial in place of the one in use, after a health check and a comparison of the two.

        `allow` may contain `older`, to accept an older version, and `unproven`, to accept a version when there are too
        few answers to tell, which the log records. A version that answers worse is always refused. Raises `ConfigError`
        for an older version and while another is on trial, `CorruptError` for a damaged one, and `GateError` when the
        check or the comparison fails; the version in use then stays.
        """
        candidate = self.get(release)
        name, slots = candidate.name, self.journal.read()
        if slots.active == name:
            return candidate
        self._check_free(slots)
        current = slots.current
        if current is not None and "older" not in allow and older(candidate, self.get(current)):
            raise ConfigError(
                f"{name} is older than {current}, the version in use; nothing was changed.",
                f"`edgekit releases rollback` restores the previous version; or add --allow-older to promote {name}.",
            )
        try:
            self.store.check(name)
            found = health(candidate.path)
            self.store.note(name, "health", asdict(found))
            if not found.passed:
                raise (CorruptError if found.kind == "digest" else GateError)(
                    f"{name} failed its health check: {found.reason}; {_stays(current)}.",
                    f"`edgekit verify {candidate.path}` shows every check.",
                )
            if current is not None:
                compared = compare(candidate.path, self.store.folder(current))
                self.store.note(name, "comparison", asdict(compared))
                if compared.unproven and "unproven" in allow:
                    why = "; ".join(filter(None, (why, f"unproven: {compared.detail}")))
                elif compared.unproven:
                    raise _unproven(name, current, compared)
                elif not compared.passed:
                    raise GateError(
                        f"{name} answers worse than {current}: {compared.detail}; {_stays(current)}.",
                        f"The changed answers are in {self.store.records / name / 'comparison.json'}.",
                    )
        except EdgekitError as error:
            self._change(lambda slots: slots, what="refuse", release=name, who=who, why=error.message)
            raise

        def to_trial(now: Slots) -> Slots:
            self._check_free(now)
            if now.current != current or name not in self.store.names():
                raise ConfigError(
                    f"The releases changed while {name} was checked; nothing was changed.", "Run it again."
                )
            return now.trying(name)

        self._change(to_trial, what="promote", release=name, who=who, why=why)
        return self.get(name)

    def boot(self) -> Path:
        """The bundle that a starting server opens; its digests were checked.

        A start uses one try of a version on trial. When none is left, or the version is damaged, it is rejected and the
        previous version answers. Raises `ConfigError` when no version was ever promoted, and `CorruptError` when all are
        damaged.
        """
        slots = self.journal.read()
        if slots.pending is None and slots.current is not None and not self.store.holds(slots.current):
            return self.store.folder(slots.current)
        try:
            with self._writing("lock"):
                return self._boot(self.journal.read())
        except StageError:  # a start that cannot be counted must not use the version on trial
            if (whole := self._whole(slots.good)) is None:
                raise
            return self.store.folder(whole)

    def _boot(self, slots: Slots) -> Path:
        if slots.pending is not None:
            name, damage = slots.pending, self.store.holds(slots.pending)
            if slots.tries and not damage:
                left = replace(slots, tries=slots.tries - 1)
                self._write(left, what="try", release=name, why=f"a start; {left.tries} left")
                return self.store.folder(name)
            slots = self._out(slots, name, damage or "it used all its tries and was never marked good")
        if slots.current is None:
            raise ConfigError(
                f"No release is in use in {self.root}.",
                "Run `edgekit releases import BUNDLE`, then `edgekit releases promote RELEASE`.",
            )
        return self.store.folder(str(self._to_whole(slots).current))

    def mark_good(self, release: str | None = None) -> None:
        """Make the pending version, which answers well, the current one.

        With `release`, only if that is the pending one. Without a pending version nothing happens.
        """
        pending = self.journal.read().pending
        if pending is None or release not in (None, pending):
            return
        with self._writing("lock"):
            slots = self.journal.read()
            if slots.pending == pending:
                self._write(slots.settled(), what="good", release=pending, why="it started and answered")

    def verdict(self, failed: str, *, release: str | None = None) -> Path | None:
        """Mark the version that answers now as bad, for the reason `failed`, and return the one that replaces it.

        With `release`, only if that version answers, so that a late verdict cannot affect its successor. If there is no
        other version, it stays in use, which the log records. None when no version is in use.
        """
        with self._writing("lock"):
            slots = self.journal.read()
            name = slots.active
            if name is not None and release in (None, name):
                if name == slots.pending or self._whole(slots.good[:-1]):
                    slots = self._out(slots, name, failed)
                    if slots.previous is not None:  # without another version the check would only take time
                        with contextlib.suppress(CorruptError):
                            self._to_whole(slots)
                else:
                    why = f"{failed}; it stays in use, because there is no other version"
                    self._write(slots, what="verdict", release=name, why=why)
        return self.current()

    def rollback(self, *, who: str = "", why: str = "", release: str | None = None) -> Release:
        """Go back to the previous version: from one on trial to the current one, from that to the one before.

        With `release`, only if that version answers, so that a late rule cannot affect its successor.

        Raises `ConfigError` when there is none or another version answers, and `CorruptError` when all earlier ones are damaged.
        """

        def back(slots: Slots) -> Slots:
            if release is not None and slots.active != release:
                raise ConfigError(
                    f"{release} is no longer in use; in use is {slots.active or 'no version'}; nothing was changed.",
                    "`edgekit releases log` shows who changed it, and why.",
                )
            earlier = slots.good if slots.pending else slots.good[:-1]
            if slots.active is None or not earlier:
                raise ConfigError(
                    "There is no earlier version to go back to; nothing was changed.",
                    "`edgekit releases list` shows the versions; `edgekit releases promote` puts one into use.",
                )
            whole = self._whole(earlier)
            if whole is None:
                raise CorruptError(
                    "All earlier versions are damaged; nothing was changed.",
                    "Import the bundle of one again, then roll back.",
                )
            slots = slots.without(slots.active, why or "rolled back")
            while slots.current is not None and slots.current != whole:
                slots = slots.without(slots.current, self.store.holds(slots.current))
            return slots

        before = self.journal.read().active
        self._change(back, what="rollback", release=before, who=who, why=why)
        return self.get(str(self.journal.read().current))

    def gc(self, keep: int = 2, *, who: str = "") -> dict[str, Any]:
        """Remove versions that are no longer in use, and unused files; returns `removed` names and `freed_mib`.

        It keeps the last `keep` versions that were marked good, the one on trial, and newer ones that were never tried.
        """
        if keep < 1:
            raise ConfigError(
                "At least one version must be kept; nothing was removed.", "Use --keep 1 or more."
            )
        with self._writing("import.lock"):
            gone: list[str] = []

            def trim(slots: Slots) -> Slots:
                newest = self._release(slots.current, slots).number if slots.current else 0
                for release in self.list():
                    waiting = release.place == "new" and release.number >= newest
                    if release.name not in (*slots.good[-keep:], slots.pending) and not waiting:
                        gone.append(release.name)
                names = set(self.store.names()) - set(gone)
                good = tuple(name for name in slots.good if name in names)
                bad = {name: why for name, why in slots.bad.items() if name in names}
                return replace(slots, good=good, bad=bad)

            said = f"keeps the last {keep}"
            self._change(trim, what="gc", release=None, who=who, why=said)
            for name in gone:
                self.store.remove(name)
            freed = self.store.sweep()
        return {"removed": gone, "freed_mib": round(freed / 2**20, 3)}

    # Beneath

    def _release(self, name: str, slots: Slots) -> Release:
        manifest: dict[str, Any] = {"files": []}
        why = slots.bad.get(name, "")
        try:
            manifest = read_checked(self.store.folder(name))[1]
        except CorruptError as error:  # a damaged version is still listed
            why = why or error.message
        noted = self.store.noted(name, "import")
        place: Place = "new"
        if name == slots.pending:
            place = "pending"
        elif name in slots.good:
            place = "current" if name == slots.current else "previous" if name == slots.previous else "good"
        elif name in slots.bad:
            place = "bad"
        return Release(
            name=name,
            path=self.store.folder(name),
            model=str(manifest.get("name", "")),
            target=str(manifest.get("target", "")),
            version=manifest.get("version"),
            created=manifest.get("created"),
            imported=float(noted.get("time", 0.0)),
            number=int(noted.get("number", 0)),
            size_mib=round(sum(entry["bytes"] for entry in manifest["files"]) / 2**20, 3),
            place=place,
            tries=slots.tries if place == "pending" else 0,
            why=why,
        )

    def _check_free(self, slots: Slots) -> None:
        if slots.pending is not None:
            raise ConfigError(
                f"{slots.pending} is on trial; nothing was changed.",
                "Wait until it is marked good, or `edgekit releases rollback` first.",
            )

    def _whole(self, good: Sequence[str]) -> str | None:
        """The newest of `good` that is undamaged."""
        return next((name for name in reversed(good) if not self.store.holds(name)), None)

    def _to_whole(self, slots: Slots) -> Slots:
        """The slots without the newest versions that are damaged; raises `CorruptError` when all of them are."""
        if slots.current is None:
            return slots
        whole = self._whole(slots.good)
        if whole is None:
            raise CorruptError(
                f"All releases on this device are damaged: {self.store.holds(slots.current)}",
                "Import a bundle again, then start the server.",
            )
        while slots.current is not None and slots.current != whole:
            slots = self._out(slots, slots.current, self.store.holds(slots.current))
        return slots

    def _out(self, slots: Slots, name: str, why: str) -> Slots:
        slots = slots.without(name, why)
        self._write(slots, what="verdict", release=name, why=why)
        return slots

    def _write(self, slots: Slots, *, what: str, release: str | None, why: str, who: str = ITSELF) -> None:
        if what in AUDITED:
            self.audit.append(who=who, what=what, why=why, release=release)
        self.journal.write(slots, what=what, release=release, who=who, why=why)

    def _change(
        self, change: Callable[[Slots], Slots], *, what: str, release: str | None, who: str, why: str
    ) -> None:
        with self._writing("lock"):
            slots = change(self.journal.read())
            self._write(slots, what=what, release=release, who=who or operator(), why=why)

    @contextlib.contextmanager
    def _writing(self, lock: str) -> Iterator[None]:
        try:
            with disk.locked(self.root / lock):
                yield
        except OSError as error:
            raise StageError(
                f"{self.root} cannot be written: {reason(error)}; the version in use is unchanged.",
                "Free some disk space, or check the folder's permissions, then run it again.",
            ) from error


def _unproven(name: str, current: str, compared: Comparison) -> GateError:
    """The error for a candidate with too few compared answers."""
    enough = f"at least {compared.rows_needed}" if compared.rows_needed else "more"
    return GateError(
        f"{compared.n} answers are too few to tell whether {name} is as good as {current}: {compared.detail}; "
        f"{_stays(current)}.",
        f"Compare on {enough} rows with --data ROWS, or add --unproven to promote it without this proof, "
        "which the log records.",
    )


def _stays(current: str | None) -> str:
    return f"{current} stays in use" if current else "no version is in use"
