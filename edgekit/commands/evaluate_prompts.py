"""`edgekit eval overrefusal` and `edgekit eval instructions`: published prompts without answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.commands import shell
from edgekit.commands.evaluate import LOG_HELP, LogOptions, show

if TYPE_CHECKING:
    from edgekit.evaluation.answering import Free, Model


def register(parent: typer.Typer) -> None:
    """Add both verbs to `parent`, the group `eval`."""
    parent.command("overrefusal")(overrefusal)
    parent.command("instructions")(instructions)


@dataclass(frozen=True, kw_only=True)
class PromptOptions(LogOptions):
    """What both verbs take: a file of prompts, and the system message before each."""

    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS", help="The published file of prompts.")]
    system: Annotated[str, typer.Option("--system", help="A system message before each prompt.")] = ""

    @property
    def inputs(self) -> list[Path]:
        """The model file and the prompts."""
        return [*super().inputs, self.prompts]

    @property
    def free(self) -> Free:
        """How the prompts are asked."""
        from edgekit.evaluation.answering import Free

        return Free(self.max_tokens, self.system)

    def some(self, prompts: list[Any]) -> list[Any]:
        """As many prompts as `--limit` allows, evenly spaced, because such files are sorted by type."""
        from edgekit.data.rows import evenly_spaced

        return evenly_spaced(prompts, self.limit or len(prompts))

    def about(self, model: Model) -> dict[str, Any]:
        """What was measured on what, for the document."""
        from edgekit.base.artifacts import sha256_file

        data = {"name": self.prompts.name, "sha256": sha256_file(self.prompts)}
        return {"artifact": self.name, "runtime": model.name, "data": data}


@dataclass(frozen=True, kw_only=True)
class RefusalOptions(PromptOptions):
    """The options of `eval overrefusal`."""

    out: Annotated[Path, typer.Option("--out", "-o", help=LOG_HELP)] = Path("overrefusal.jsonl")


@shell.takes(RefusalOptions)
def overrefusal(options: RefusalOptions) -> None:
    """Count the safe prompts that a model refuses and the unsafe ones that it answers, on XSTest's prompts.

    A run that was interrupted goes on from its last answers when the same command is typed again.
    """
    from edgekit.evaluation import overrefusal as evaluation
    from edgekit.report.prompts_table import overrefusal_table

    prompts = options.some(evaluation.read(options.prompts))
    with options.resumed() as (emit, log, model, kept):
        result = evaluation.evaluate(model, prompts, options.free, log=log, kept=kept, emit=emit)
    show(options, result | options.about(model), overrefusal_table)


@dataclass(frozen=True, kw_only=True)
class InstructionOptions(PromptOptions):
    """The options of `eval instructions`."""

    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 1280
    out: Annotated[Path, typer.Option("--out", "-o", help=LOG_HELP)] = Path("instructions.jsonl")


@shell.takes(InstructionOptions)
def instructions(options: InstructionOptions) -> None:
    """Measure how well a model follows instructions that a program can check, on IFEval's prompts.

    The checkers are those of lm-evaluation-harness. A run that was interrupted goes on from its last answers when the same
    command is typed again.
    """
    from edgekit.evaluation import instructions as evaluation
    from edgekit.report.prompts_table import instructions_table

    prompts = options.some(evaluation.read(options.prompts))
    check = evaluation.checker()
    with options.resumed() as (emit, log, model, kept):
        result = evaluation.evaluate(model, prompts, check, options.free, log=log, kept=kept, emit=emit)
    show(options, result | options.about(model), instructions_table)
