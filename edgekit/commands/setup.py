"""`edgekit setup`: keeps files that edgekit needs and that no package installs."""

from __future__ import annotations

import typer

from edgekit.commands import shell

app = typer.Typer(help="Keep files that edgekit needs and that no package installs.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add `setup` to `parent`."""
    parent.add_typer(app, name="setup")


@app.command("converter")
def converter(json: shell.Json = False, verbose: shell.Verbose = False) -> None:
    """Keep llama.cpp's own converter, for architectures that edgekit does not write as GGUF itself.

    It is taken from the source archive of llama-cpp-python, which pip downloads (75 MB) and checks against its pinned
    hash. `make install` runs this too.
    """
    from edgekit import registry

    folder, architectures = registry.load("setups", "converter")()
    shell.print_json({"folder": str(folder), "architectures": sorted(architectures)}) if json else shell.say(
        f"llama.cpp's converter is kept in {folder}; it knows {len(architectures)} architectures.\n"
        "Next: edgekit plan --model MODEL"
    )
