"""`edgekit verify`: a bundle's files against its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.commands import shell
from edgekit.errors import GateError
from edgekit.manifest import check_files, read_manifest


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("verify")(verify)


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    json: shell.Json = False,
    verbose: shell.Verbose = False,
) -> None:
    """Hold every file of a bundle against its size and sha256 in the manifest, and say whether its build passed."""
    manifest = read_manifest(bundle)
    check_files(bundle, manifest)
    result = {"bundle": str(bundle), "files": len(manifest["files"]), "verdict": manifest["verdict"]}
    if json:
        shell.print_json(result)
    else:
        shell.say(
            f"{bundle}: {result['files']} files as in the manifest; its build's verdict: {result['verdict']}"
        )
    if manifest["verdict"] != "pass":
        raise GateError(f"{bundle} is whole, but its build did not pass.", f"See {bundle / 'report.html'}.")
