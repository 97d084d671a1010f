"""`edgekit build` and `edgekit plan`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.base.errors import GateError
from edgekit.build import defaults
from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.build.request import Order


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command("build")(build)
    app.command("plan")(plan)


LlamaCpp = Annotated[
    Path | None,
    typer.Option("--llama-cpp", help="A llama.cpp checkout, to convert architectures that edgekit cannot."),
]


@dataclass(frozen=True)
class PlanOptions:
    """The options of `edgekit plan`."""

    target: shell.TargetName = defaults.DEFAULT_TARGET
    model: shell.Model = defaults.DEFAULT_MODEL
    revision: shell.Revision = ""
    data: shell.Data = defaults.DEFAULT_DATA
    columns: shell.Columns = ""
    data_revision: shell.DataRevision = ""
    drop_leaks: shell.DropLeaks = False
    out: shell.Out = None
    set_: shell.Set = None
    robust: shell.Robust = False
    formats: shell.Formats = ""
    chat_template: shell.ChatTemplate = ""
    llama_cpp: LlamaCpp = None
    cache_dir: shell.CacheDir = defaults.DEFAULT_CACHE
    threads: shell.Threads = 0
    offline: shell.Offline = False
    json: shell.Json = False
    quiet: shell.Quiet = False
    verbose: shell.Verbose = False

    @property
    def order(self) -> Order:
        """The build that these options ask for."""
        from edgekit.build.request import Order
        from edgekit.data.dataset import DataOptions

        return Order(
            self.target,
            self.model,
            self.data,
            self.out,
            shell.changes(self.set_, self.robust),
            self.formats,
            self.llama_cpp,
            self.cache_dir,
            self.threads,
            offline=self.offline,
            reading=DataOptions(self.columns, self.data_revision, self.drop_leaks, self.offline),
            chat_template=self.chat_template,
            revision=self.revision,
        )


@dataclass(frozen=True)
class BuildOptions(PlanOptions):
    """The options of `edgekit build`."""

    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the build would do and need, without starting it.")
    ] = False
    force: shell.Force = False


@shell.takes(BuildOptions)
def build(options: BuildOptions) -> None:
    """Build a bundle from a model and rows: tune, merge, quantize, export, prove and profile."""
    if options.dry_run:
        show_plan(options)
        return
    from edgekit.build import pipeline

    request = shell.requested(replace(options.order, force=options.force))
    with shell.working() as emit:
        report = pipeline.build(request, emit)
    if options.json:
        shell.print_json(report)
    else:
        from rich.console import Console

        from edgekit.report.table import result_table

        question = request.data.test[0].messages[-2]["content"]
        passed = report["verdict"] == "pass"
        Console().print(result_table(report, f'edgekit run {request.out} "{question}"' if passed else ""))
    if report["verdict"] != "pass":
        failed = [gate["name"] for gate in report["gates"] if not gate["passed"]]
        raise GateError(
            f"Build finished, but these gates failed: {', '.join(failed)}.",
            f"{request.out / 'report.html'} shows which stage made it worse, and what to do.",
        )


@shell.takes(PlanOptions)
def plan(options: PlanOptions) -> None:
    """Show what a build would do and need, without starting it (the same as `build --dry-run`)."""
    show_plan(options)


def show_plan(options: PlanOptions) -> None:
    """Print the plan of a build. Raises the error for a build that is not possible."""
    from edgekit.build.plan import plan as make_plan
    from edgekit.models.source import check_parts

    order = options.order
    request = shell.requested(order)
    if request.source.kind == "folder" and request.source.path is not None:
        check_parts(request.source.path)
    with shell.working():
        result = make_plan(
            request.source, request.target, request.data, cache_dir=order.cache_dir, out=request.out.parent
        )
    if options.json:
        shell.print_json(result.as_dict())
    else:
        from rich.console import Console

        from edgekit.build.plan_table import plan_table

        Console().print(plan_table(result))
    result.check(order.arguments)
    if not options.json:
        shell.say(f"Next: {shlex.join(['edgekit', 'build', *order.arguments])}")
