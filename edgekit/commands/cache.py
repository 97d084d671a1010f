"""`edgekit cache list|clean`: shows the cached stages by size and age, and removes them."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.build import defaults
from edgekit.commands import shell

app = typer.Typer(help="List or remove the cached results of finished stages.", no_args_is_help=True)
MIB = 2**20


def register(parent: typer.Typer) -> None:
    """Add `cache` to `parent`."""
    parent.add_typer(app, name="cache")


@app.command("list")
def show(cache_dir: shell.CacheDir = defaults.DEFAULT_CACHE, json: shell.Json = False) -> None:
    """List the cached stages with their size and when they were last used."""
    from edgekit.base.cache_contents import entries, totals

    found = entries(cache_dir)
    stages = totals(found)
    whole = sum(entry.bytes for entry in found)
    if json:
        shell.print_json(
            {
                "cache_dir": str(cache_dir),
                "bytes": whole,
                "stages": [asdict(stage) for stage in stages],
                "entries": [_plain(entry) for entry in found],
            }
        )
        return
    for stage in stages:
        half = f", {stage.interrupted} interrupted" if stage.interrupted else ""
        shell.say(
            f"{stage.stage:<16} {stage.bytes / MIB:>9,.1f} MiB  {stage.finished} finished{half}; "
            f"last used {_ago(stage.newest_used)}, the oldest entry {_ago(stage.oldest_used)}"
        )
    shell.say(f"{'all':<16} {whole / MIB:>9,.1f} MiB  in {cache_dir}")
    if found:
        shell.say("Next: edgekit cache clean --older-than 7d")


@app.command("clean")
def clean(
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", help="Remove only entries that were not used for this time, such as 12h or 7d."
        ),
    ] = "0s",
    stage: Annotated[
        list[str] | None, typer.Option("--stage", help="Remove only this stage. Can be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed, without removing it.")
    ] = False,
    cache_dir: shell.CacheDir = defaults.DEFAULT_CACHE,
    json: shell.Json = False,
) -> None:
    """Remove finished stages and the remains of interrupted ones, unless another process is using the cache."""
    from edgekit.base.cache_contents import clean as remove
    from edgekit.base.clock import seconds
    from edgekit.base.errors import ConfigError
    from edgekit.build import runs

    age = seconds(older_than)
    run = runs.read(cache_dir)
    if run is not None and run.state in ("RUNNING", "UNKNOWN") and not dry_run:
        where = f" on {run.host}" if run.elsewhere else f": process {run.pid}"
        raise ConfigError(
            f"A build of {run.model} is running in {cache_dir}{where}; nothing was removed.",
            "Run the same command again when the build has ended.",
        )
    removed = remove(cache_dir, older_than_s=age, stages=stage or (), dry_run=dry_run)
    size = sum(entry.bytes for entry in removed)
    if json:
        shell.print_json(
            {"removed": not dry_run, "bytes": size, "entries": [_plain(entry) for entry in removed]}
        )
        return
    for entry in removed:
        shell.say(
            f"{entry.stage:<16} {entry.bytes / MIB:>9,.1f} MiB  {entry.kind}, last used {_ago(entry.used)}"
        )
    verb = "Would remove" if dry_run else "Removed"
    shell.say(f"{verb}: {len(removed)} entries, {size / MIB:,.1f} MiB")


def _ago(moment: float) -> str:
    """How long ago `moment` was, in its largest unit."""
    age = max(0.0, time.time() - moment)
    for name, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(age // length)) >= 1:
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def _plain(entry: Any) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(entry).items()}
