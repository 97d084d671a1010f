"""`edgekit eval ablate`: what each part of a recipe buys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgekit.base.errors import ConfigError
from edgekit.commands import shell
from edgekit.commands.build import PlanOptions


def register(parent: typer.Typer) -> None:
    """Add `ablate` to `parent`, the group `eval`."""
    parent.command("ablate")(ablate)


@dataclass(frozen=True)
class AblateOptions(PlanOptions):
    """The options of `eval ablate`: those of a build that has every part, and what to leave out."""

    out: Annotated[
        Path, typer.Option("--out", "-o", help="The JSON document to write, with a picture (.svg) beside it.")
    ] = Path("ablation.json")
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--part",
            metavar="[NAME=]KEY=VALUE",
            help="A part, as the value of the target that leaves it out. Can be repeated. Default: the parts that the target has.",
        ),
    ] = None
    grid: Annotated[
        bool, typer.Option("--grid", help="Leave out every combination of parts, not only each alone.")
    ] = False
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="NUMBERS", help="Seeds of the tuning, separated by commas.")
    ] = "7,8,9"
    rows: Annotated[
        int,
        typer.Option(
            "--rows", min=0, help="Test rows asked with noise; 0 takes the target's evaluate.robust_rows."
        ),
    ] = 0
    ray: Annotated[
        str,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Spread the runs over this Ray cluster; `auto` finds one."
        ),
    ] = ""
    force: shell.Force = False


@shell.takes(AblateOptions)
def ablate(options: AblateOptions) -> None:
    """Leave parts of a recipe out, tune and measure with several seeds, and show what each part buys.

    Every run goes through the stage cache: an interrupted command goes on from its last finished stage.
    """
    from dataclasses import replace

    from edgekit.base.artifacts import check_output, write_json, written_whole
    from edgekit.build.ablation import Ablation, run
    from edgekit.evaluation.ablation import Part
    from edgekit.report.ablation import ablation_table, picture

    drawn = options.out.with_suffix(".svg")
    if drawn == options.out:
        raise ConfigError(
            "--out names the JSON document; its picture ends in .svg.", "Give --out another ending."
        )
    for path in (options.out, drawn):
        check_output(path, inputs=[Path(options.data)], force=options.force, file=True)
    order = replace(options.order, out=None, threads=shell.cores(options.threads))
    asked = Ablation(
        order, Part.of(options.part or ()), options.grid, _seeds(options.seeds), options.rows, options.ray
    )
    with shell.working() as emit:
        result = run(asked, emit)
    with written_whole(options.out, force=options.force) as document:
        write_json(document, result)
    with written_whole(drawn, force=options.force) as page:
        page.write_text(picture(result), encoding="utf-8")
    shell.show(result, ablation_table, as_json=options.json)
    if not options.json:
        shell.say(f" Written: {options.out} and {drawn}")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        seeds = tuple(dict.fromkeys(int(piece) for piece in text.split(",")))
    except ValueError:
        seeds = ()
    if not seeds or min(seeds) < 0:
        raise ConfigError(
            f"--seeds '{text}' is not a list of whole numbers from 0 on. Nothing was started.",
            "Separate them by commas, such as --seeds 7,8,9.",
        )
    return seeds
