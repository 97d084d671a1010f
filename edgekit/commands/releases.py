"""`edgekit releases import|list|promote|rollback|gc|log`: versions of a bundle on a device."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.data.rows import Row
    from edgekit.field.releases import Release, Releases
    from edgekit.field.releases.health import Health

app = typer.Typer(
    help="Manage the versions of a bundle on this device: import, promote, roll back.", no_args_is_help=True
)

Why = Annotated[str, typer.Option("--why", help="The reason, for the log.")]
Name = Annotated[str, typer.Argument(help="The name of a release, or a unique prefix of it.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help="Check only gguf or only onnx. Default: every format of the bundle."),
]


def register(parent: typer.Typer) -> None:
    """Add `releases` to `parent`."""
    parent.add_typer(app, name="releases")


def _releases(state: Path) -> Releases:
    from edgekit.field.releases import Releases

    return Releases(state / "releases")


@dataclass(frozen=True)
class ImportOptions:
    """The options of `edgekit releases import`."""

    bundle: Annotated[Path, typer.Argument(help="A bundle, as `edgekit build` wrote it.")]
    why: Why = ""
    who: shell.Who = None
    format: Format = None
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Import a bundle that failed its gates.")
    ] = False
    state: shell.StateDir = shell.DEFAULT_STATE
    json: shell.Json = False
    quiet: shell.Quiet = False
    verbose: shell.Verbose = False


@app.command("import")
@shell.takes(ImportOptions)
def import_(options: ImportOptions) -> None:
    """Check a bundle's digests, verdict and golden answers, and copy it to this device."""
    with shell.working() as emit:
        release = _releases(options.state).import_(
            options.bundle,
            who=options.who or "",
            why=options.why,
            allow_failed=options.allow_failed,
            health=lambda folder: _checked(folder, emit, options.format, speed=False),
        )
    _tell(
        release,
        options.json,
        f"{release.name} is on this device ({release.place}). Next: edgekit releases promote {release.name}",
    )


@app.command("list")
def list_(state: shell.StateDir = shell.DEFAULT_STATE, json: shell.Json = False) -> None:
    """List the versions on this device, the newest import first."""
    found = _releases(shell.present(state)).list()
    if json:
        shell.print_json([asdict(release) for release in found])
        return
    if not found:
        shell.say("No releases. Import one: edgekit releases import BUNDLE")
    for release in found:
        note = f"{release.tries} tries left" if release.place == "pending" else release.why
        line = f"{release.name}  {release.place:<8}  {_when(release.imported)}  {release.size_mib:8.1f} MiB"
        shell.say(f"{line}  {release.model}-{release.target}  {note}".rstrip())


@dataclass(frozen=True)
class PromoteOptions:
    """The options of `edgekit releases promote`."""

    release: Name
    why: Why = ""
    who: shell.Who = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Rows with right answers, to compare the two versions on: all rows of a file, or the test rows of a data set.",
        ),
    ] = None
    columns: shell.Columns = ""
    data_revision: shell.DataRevision = ""
    drop_leaks: shell.DropLeaks = False
    format: Format = None
    allow_older: Annotated[
        bool, typer.Option("--allow-older", help="Promote a version older than the one in use.")
    ] = False
    unproven: Annotated[
        bool,
        typer.Option(
            "--unproven",
            help="Promote without proof that it answers as well, if too few answers were compared. The log records it.",
        ),
    ] = False
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False
    threads: shell.Threads = 0
    state: shell.StateDir = shell.DEFAULT_STATE
    json: shell.Json = False
    quiet: shell.Quiet = False
    verbose: shell.Verbose = False


@app.command("promote")
@shell.takes(PromoteOptions)
def promote(options: PromoteOptions) -> None:
    """Put a version on trial, if it is healthy and is shown to answer as well as the version in use.

    The two versions answer the same questions: the rows of --data, or, without them, the golden prompts of both. The
    promotion is refused if the new version answers worse, and also if there are too few questions to show that it does
    not; the error then says how many rows are needed (about 133 if no answer changes). --unproven overrides only the
    second refusal. A version with the same model files and the same answers needs no more questions.
    """
    from edgekit.data.dataset import DataOptions, load_questions
    from edgekit.field.releases.compare import Comparison, compare
    from edgekit.field.releases.lifecycle import Allowance

    releases = _releases(options.state)
    rows: list[Row] = []
    if options.data:
        reading = DataOptions(options.columns, options.data_revision, options.drop_leaks)
        with shell.working() as emit:
            rows = load_questions(options.data, reading, emit)
    name = releases.get(options.release).name
    if not options.yes and not options.json and sys.stdin.isatty() and sys.stderr.isatty():
        typer.confirm(f"Put {name} on trial in place of the version in use?", abort=True, err=True)
    compared: list[Comparison] = []
    allowed: dict[Allowance, bool] = {"older": options.allow_older, "unproven": options.unproven}

    def hold(candidate: Path, current: Path) -> Comparison:
        from edgekit.base.events import StageFinished, StageStarted

        start = time.perf_counter()
        emit(StageStarted("compare", f"{candidate.name} with {current.name}"))
        compared.append(
            compare(candidate, current, rows, format=options.format, threads=options.threads or None)
        )
        if compared[0].passed or (options.unproven and compared[0].unproven):
            emit(StageFinished("compare", time.perf_counter() - start, detail=compared[0].detail))
        return compared[0]

    with shell.working() as emit:
        promoted = releases.promote(
            name,
            who=options.who or "",
            why=options.why,
            health=lambda folder: _checked(folder, emit, options.format, threads=options.threads),
            compare=hold,
            allow=[name for name, given in allowed.items() if given],
        )
    more = {"comparison": asdict(compared[0]) if compared else None}
    text = f"{name} is already in use"
    if promoted.place == "pending":
        text = f"{name} is on trial: accepted after a successful load, rejected after {promoted.tries} failed starts"
    _tell(promoted, options.json, text, more)


@app.command("rollback")
def rollback(
    why: Why = "",
    who: shell.Who = None,
    release: Annotated[
        str | None,
        typer.Option(
            "--release", help="Roll back only if this version is in use: its name, or a unique prefix of it."
        ),
    ] = None,
    state: shell.StateDir = shell.DEFAULT_STATE,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Go back to the previous version. A running server switches to it within a second."""
    releases = _releases(state)
    leaving = None if release is None else releases.get(release).name
    back = releases.rollback(who=who or "", why=why, release=leaving)
    _tell(back, json, f"{back.name} is in use again")


@app.command("gc")
def gc(
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="Good versions to keep, the current one included.")
    ] = 2,
    who: shell.Who = None,
    state: shell.StateDir = shell.DEFAULT_STATE,
    json: shell.Json = False,
) -> None:
    """Remove versions that are no longer in use, and the remains of interrupted commands."""
    found = _releases(state).gc(keep, who=who or "")
    if json:
        shell.print_json(found)
    else:
        names = ", ".join(found["removed"]) or "no version"
        shell.say(f"Removed {names}; {found['freed_mib']:.1f} MiB freed")


@app.command("log")
def log(state: shell.StateDir = shell.DEFAULT_STATE, json: shell.Json = False) -> None:
    """Show every change, oldest first: when, who, what and why."""
    lines = _releases(shell.present(state)).log()
    if json:
        shell.print_json(lines)
        return
    for line in lines:
        release = line["release"] or "-"
        shell.say(
            f"{_when(line['time'])}  {line['what']:<8}  {release:<12}  {line['who']}  {line['why']}".rstrip()
        )


def _checked(folder: Path, emit: Any, format: str | None, *, speed: bool = True, threads: int = 0) -> Health:
    from edgekit.base.events import StageFinished, StageStarted
    from edgekit.field.releases import health

    emit(StageStarted("health", "in a process of its own"))
    found = health.check(folder, format=format, speed=speed, threads=threads)
    for gate in found.gates:
        emit(gate)
    if found.passed:
        emit(StageFinished("health", found.seconds))
    return found


def _tell(release: Release, json: bool, text: str, more: Mapping[str, Any] | None = None) -> None:
    if json:
        shell.print_json({**asdict(release), **(more or {})})
    else:
        shell.say(text)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
