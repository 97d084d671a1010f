"""`edgekit build` and `edgekit plan`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgekit.base.errors import GateError
from edgekit.commands import shell


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command("build")(build)
    app.command("plan")(plan)


LlamaCpp = Annotated[
    Path | None,
    typer.Option("--llama-cpp", help="A llama.cpp checkout, to convert architectures that edgekit cannot."),
]


def build(
    target: shell.TargetName = shell.DEFAULT_TARGET,
    model: shell.Model = shell.DEFAULT_MODEL,
    data: shell.Data = shell.DEFAULT_DATA,
    out: shell.Out = None,
    set_: shell.Set = None,
    formats: shell.Formats = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what the build would do and need, without starting it.")
    ] = False,
    llama_cpp: LlamaCpp = None,
    cache_dir: shell.CacheDir = shell.DEFAULT_CACHE,
    threads: shell.Threads = 0,
    force: shell.Force = False,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Build a bundle from a model and rows: tune, merge, quantize, export, prove and profile."""
    if dry_run:
        plan(
            target,
            model,
            data,
            out,
            set_,
            formats,
            llama_cpp,
            cache_dir,
            threads,
            offline,
            json,
            quiet,
            verbose,
        )
        return
    from edgekit.build import pipeline
    from edgekit.build.request import Order

    request = Order(
        target, model, data, out, set_ or [], formats, llama_cpp, cache_dir, threads, force, offline
    ).request()

    with shell.working() as emit:
        report = pipeline.build(request, emit)
    if json:
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


def plan(
    target: shell.TargetName = shell.DEFAULT_TARGET,
    model: shell.Model = shell.DEFAULT_MODEL,
    data: shell.Data = shell.DEFAULT_DATA,
    out: shell.Out = None,
    set_: shell.Set = None,
    formats: shell.Formats = "",
    llama_cpp: LlamaCpp = None,
    cache_dir: shell.CacheDir = shell.DEFAULT_CACHE,
    threads: shell.Threads = 0,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Show what a build would do and need, without starting it (the same as `build --dry-run`)."""
    from edgekit.build.plan import plan as make_plan
    from edgekit.build.request import Order

    order = Order(
        target, model, data, out, set_ or [], formats, llama_cpp, cache_dir, threads, offline=offline
    )
    request = order.request()
    with shell.working():
        result = make_plan(
            request.source, request.target, request.data, cache_dir=cache_dir, out=request.out.parent
        )
    if json:
        shell.print_json(result.as_dict())
    else:
        from rich.console import Console

        from edgekit.build.plan_table import plan_table

        Console().print(plan_table(result))
    result.check(order.arguments)
    if not json:
        shell.say(f"Next: {shlex.join(['edgekit', 'build', *order.arguments])}")
