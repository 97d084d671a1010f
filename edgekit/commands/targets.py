"""`edgekit targets list|show|validate|schema`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit import registry
from edgekit.base.errors import ConfigError
from edgekit.commands import shell

app = typer.Typer(help="List, show and check targets.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add `targets` to `parent`."""
    parent.add_typer(app, name="targets")


def _targets() -> Any:
    return registry.load("profiles", "targets")


@app.command("list")
def list_(json: shell.Json = False) -> None:
    """List the shipped targets, with the bits per weight of the sample model's files."""
    loaded = [_targets().load(name) for name in _targets().names()]
    if json:
        keys = ("name", "summary", "bits_per_weight")
        shell.print_json([{key: getattr(target, key) for key in keys} for target in loaded])
        return
    bits = [
        ", ".join(f"{format} {value:.1f}" for format, value in target.bits_per_weight.items())
        for target in loaded
    ]
    names, figures = max(len(target.name) for target in loaded), max(map(len, bits))
    shell.say(f"{'':<{names}}  bits per weight")
    for target, figure in zip(loaded, bits, strict=True):
        shell.say(f"{target.name:<{names}}  {figure:<{figures}}  {target.summary}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A target's name, or a TOML file.")],
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Show every value and the file it comes from.")
    ] = False,
    json: shell.Json = False,
) -> None:
    """Show the values of a target."""
    values = _targets().resolved(name)
    if json:
        shell.print_json({key: {"value": value, "origin": origin} for key, value, origin in values})
        return
    shown = values if resolved else [value for value in values if value[2] != "default"]
    width = max(len(key) for key, _, _ in shown)
    for key, value, origin in shown:
        shell.say(f"{key:<{width}}  {value!s}" + (f"   # {origin}" if resolved else ""))


@app.command("validate")
def validate(file: Annotated[Path, typer.Argument(help="A TOML file.")], json: shell.Json = False) -> None:
    """Check a target file and list every fault."""
    faults = _targets().validate(file)
    if faults:
        raise ConfigError(
            f"{file} has {len(faults)} fault{'s' if len(faults) > 1 else ''}.",
            "Fix the file, and check it again.",
            faults,
        )
    shell.print_json({"valid": True}) if json else shell.say(f"{file} is a valid target.")


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a target file, for editors."""
    shell.print_json(_targets().schema())
