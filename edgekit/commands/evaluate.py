"""`edgekit eval calibration`, and what the verbs of `eval` share; the others are in modules beside this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from edgekit.base.errors import ConfigError
from edgekit.build import defaults
from edgekit.commands import shell
from edgekit.commands.artifact import Artifact, Measured, url_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import RenderableType

    from edgekit.base.events import Emit
    from edgekit.data.splits import Dataset
    from edgekit.evaluation.answering import Model
    from edgekit.evaluation.kept import Kept
    from edgekit.registry import Runtime

CONTEXT = 2048  # maximum tokens of a prompt and its answer together


class Verbs(TyperGroup):
    """The verbs of `eval`, where `edgekit eval ARTIFACT` is `edgekit eval task ARTIFACT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `task` before anything that is not a verb; a misspelt verb that is no file is refused."""
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            meant = get_close_matches(args[0], self.commands, n=1)
            if meant and not Path(args[0]).exists():
                ctx.fail(f"There is no verb and no file '{args[0]}'. Did you mean '{meant[0]}'?")
            args = ["task", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=Verbs, help="Measure a model file on the rows of a split.", no_args_is_help=True)


def register(parent: typer.Typer) -> None:
    """Add `eval` to `parent`."""
    parent.add_typer(app, name="eval")


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """What every verb of `eval` takes that opens a model file: how it is asked, and what is printed."""

    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 64
    threads: shell.Threads = 0
    json: shell.Json = False
    quiet: shell.Quiet = False
    verbose: shell.Verbose = False

    @contextmanager
    def opened_at(self, artifact: Path) -> Iterator[Runtime]:
        """A model file in its runtime, which is closed at the end. Raises as `subject_of`."""
        from edgekit.proof.verify import subject_of

        runtime = subject_of(artifact).open_for(shell.cores(self.threads), CONTEXT)
        try:
            yield runtime
        finally:
            runtime.close()


@dataclass(frozen=True, kw_only=True)
class FileOptions(AskOptions):
    """What a verb takes that measures one model file on many questions."""

    artifact: Measured
    limit: Annotated[int, typer.Option("--limit", min=0, help="Number of rows; 0 uses all.")] = 0
    force: shell.Force = False

    @property
    def name(self) -> str:
        """The path or the URL as it was given."""
        return url_of(self.artifact) or str(self.artifact)

    @property
    def inputs(self) -> list[Path]:
        """The paths that are read; what is written must not replace one of them."""
        return [self.artifact]

    @contextmanager
    def opened(self) -> Iterator[Runtime]:
        """The model file in its runtime, which is closed at the end."""
        with self.opened_at(self.artifact) as runtime:
            yield runtime

    @contextmanager
    def answering(self) -> Iterator[Model]:
        """The model file in its runtime, or the endpoint at a URL."""
        from edgekit.evaluation.endpoint import Endpoint

        if url := url_of(self.artifact):
            yield Endpoint(url)
            return
        with self.opened() as runtime:
            yield runtime


LOG_HELP = "The log of samples to write, JSONL; it must not exist without --force."


@dataclass(frozen=True, kw_only=True)
class LogOptions(FileOptions):
    """What a verb takes that logs every sample."""

    out: Annotated[Path, typer.Option("--out", "-o", help=LOG_HELP)] = Path("samples.jsonl")

    @contextmanager
    def log(self) -> Iterator[tuple[Emit, Path, Runtime]]:
        """An `emit` that prints progress, the new log to write, and the opened model file."""
        with self._logging() as (emit, log), self.opened() as runtime:
            yield emit, log, runtime

    @contextmanager
    def answers(self) -> Iterator[tuple[Emit, Path, Model]]:
        """The same for a verb that needs answers only, which an endpoint gives as well."""
        with self._logging() as (emit, log), self.answering() as model:
            yield emit, log, model

    @contextmanager
    def resumed(self, *more: Any) -> Iterator[tuple[Emit, Path, Model, Kept]]:
        """The same with the answers of an interrupted run with the same `more`, which are removed when the log is written."""
        with self.answers() as (emit, log, model):
            kept = self.kept(model, emit, *more)
            yield emit, log, model, kept
        kept.remove()

    @contextmanager
    def _logging(self) -> Iterator[tuple[Emit, Path]]:
        from edgekit.base.artifacts import written_whole

        writing = written_whole(self.out, inputs=self.inputs, force=self.force, file=True)
        with shell.working() as emit, writing as log:
            yield emit, log

    def kept(self, model: Model, emit: Emit, *more: Any) -> Kept:
        """The answers of an interrupted run with the same model file or URL, `--max-tokens` and `more`."""
        from edgekit.base.artifacts import digest_of, sha256_tree
        from edgekit.evaluation.kept import Kept

        which = url_of(self.artifact) or sha256_tree(self.artifact)
        return Kept(self.out, digest_of([which, model.name, self.max_tokens, *more]), emit)


@dataclass(frozen=True, kw_only=True)
class RowsOptions(AskOptions):
    """What a verb takes that asks the rows of `--data`."""

    data: shell.Data = defaults.DEFAULT_DATA
    columns: shell.Columns = ""
    data_revision: shell.DataRevision = ""
    drop_leaks: shell.DropLeaks = False
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test"
    offline: shell.Offline = False

    def dataset(self, keep: tuple[str, ...] = ()) -> Dataset:
        """The rows of `--data`, with their columns `keep`. Raises `ConfigError` for an unknown split."""
        from edgekit.data.dataset import DataOptions
        from edgekit.data.splits import SPLITS

        if self.split not in SPLITS:
            raise ConfigError(f"There is no split '{self.split}'.", f"Use one of: {', '.join(SPLITS)}.")
        given = DataOptions(self.columns, self.data_revision, self.drop_leaks, self.offline, keep)
        return shell.dataset(self.data, given)

    def rows_measured(self, dataset: Dataset) -> dict[str, Any]:
        """What the rows are, for the document."""
        return {"name": dataset.name, "sha256": dataset.digest, "split": self.split}


@dataclass(frozen=True, kw_only=True)
class EvalOptions(RowsOptions, FileOptions):
    """What a verb takes that measures one model file on the rows of a split."""

    @property
    def inputs(self) -> list[Path]:
        """The model file and the rows."""
        return [*super().inputs, Path(self.data)]

    def rows_of(self, dataset: Dataset, split: str = "") -> list[Any]:
        """The rows of `split`, by default those to measure, as many as `--limit` allows."""
        rows: list[Any] = getattr(dataset, split or self.split)
        return rows[: self.limit] if self.limit else rows

    def about(self, dataset: Dataset, model: Model) -> dict[str, Any]:
        """What was measured on what, for the document."""
        return {
            "artifact": self.name,
            "runtime": model.name,
            "data": self.rows_measured(dataset),
        }


@dataclass(frozen=True, kw_only=True)
class LoggedOptions(EvalOptions, LogOptions):
    """The same, for a verb that logs every sample."""


@dataclass(frozen=True, kw_only=True)
class ScopeOptions(LoggedOptions):
    """The same, for a verb that counts abstentions."""

    abstain: Annotated[
        str,
        typer.Option(
            "--abstain",
            metavar="TEXT",
            help="The answer that says 'out of scope'. auto: as the rows tell; empty: there is none.",
        ),
    ] = "auto"

    def abstaining(self, dataset: Dataset) -> str:
        """The answer that says that a request is out of scope; empty where there is none."""
        from edgekit.data.out_of_scope import answer_of

        return answer_of(dataset.train, self.abstain)


def show(
    options: LogOptions,
    result: dict[str, Any],
    table: Callable[[Mapping[str, Any]], RenderableType],
) -> None:
    """Print what was measured, as one JSON document or as a table."""
    shell.show(result | {"samples": str(options.out)}, table, as_json=options.json)


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(LoggedOptions):
    """The options of `eval calibration`."""

    artifact: Artifact  # a URL gives no likelihoods
    out: Annotated[Path, typer.Option("--out", "-o", help=LOG_HELP)] = Path("calibration.jsonl")


@app.command("calibration")
@shell.takes(CalibrationOptions)
def calibration(options: CalibrationOptions) -> None:
    """Choose each answer among those of the training rows, and measure whether the model's confidence can be trusted.

    For rows whose answers are labels. A temperature is fitted on the validation rows. A run that was interrupted goes on from its
    last scores when the same command is typed again.
    """
    from edgekit.evaluation import calibration as evaluation
    from edgekit.evaluation.choices import candidates
    from edgekit.report.evaluation_tables import calibration_table

    dataset = options.dataset()
    labels = candidates(dataset.train)
    fitted_on = options.rows_of(dataset, "validation")
    with options.log() as (emit, log, runtime):
        rows = options.rows_of(dataset)
        kept = options.kept(runtime, emit, *labels)
        result = evaluation.evaluate(runtime, fitted_on, rows, labels, log=log, kept=kept, emit=emit)
    kept.remove()
    show(options, result | options.about(dataset, runtime), calibration_table)
