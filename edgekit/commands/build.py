"""`edgekit build` and `edgekit plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.base.errors import GateError
from edgekit.commands import shell


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command("build")(build)
    app.command("plan")(plan)


LlamaCpp = Annotated[
    Path | None,
    typer.Option("--llama-cpp", help="A llama.cpp checkout, for architectures edgekit does not convert."),
]


def build(
    target: shell.TargetName = shell.DEFAULT_TARGET,
    model: shell.Model = shell.DEFAULT_MODEL,
    data: shell.Data = shell.DEFAULT_DATA,
    out: shell.Out = None,
    set_: shell.Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would do and need; start nothing.")
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
    """Tune, merge, quantize, export, prove and profile: from a model and rows to a bundle."""
    if dry_run:
        plan(target, model, data, out, set_, llama_cpp, cache_dir, threads, offline, json, quiet, verbose)
        return
    request = make_request(target, model, data, out, set_, llama_cpp, cache_dir, threads, force, offline)
    from edgekit.build import pipeline

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
            f"Built, but worse than its budget allows: {', '.join(failed)}.",
            f"See {request.out / 'report.html'} for where it got worse.",
        )


def plan(
    target: shell.TargetName = shell.DEFAULT_TARGET,
    model: shell.Model = shell.DEFAULT_MODEL,
    data: shell.Data = shell.DEFAULT_DATA,
    out: shell.Out = None,
    set_: shell.Set = None,
    llama_cpp: LlamaCpp = None,
    cache_dir: shell.CacheDir = shell.DEFAULT_CACHE,
    threads: shell.Threads = 0,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Say what a build would do and need, before anything is trained (the same as `build --dry-run`)."""
    from edgekit.build.plan import plan as make_plan

    request = make_request(target, model, data, out, set_, llama_cpp, cache_dir, threads, False, offline)
    with shell.working():
        result = make_plan(
            request.source, request.target, request.data, cache_dir=cache_dir, out=request.out.parent
        )
    if json:
        shell.print_json(result.as_dict())
    else:
        from rich.console import Console

        from edgekit.report.plan_table import plan_table

        Console().print(plan_table(result))
    result.check()
    if not json:
        shell.say(f"Next: edgekit build --target {target} --model {model} --data {data}")


def make_request(
    target: str,
    model: str,
    data: str,
    out: Path | None,
    set_: list[str] | None,
    llama_cpp: Path | None,
    cache_dir: Path,
    threads: int,
    force: bool,
    offline: bool,
) -> Any:
    """The typed request for what was typed; raises `ConfigError` for everything wrong with it."""
    from edgekit import registry
    from edgekit.build.pipeline import Request
    from edgekit.data.dataset import load_dataset
    from edgekit.models.source import resolve

    chosen = registry.load("profiles", "targets").load(target, set_ or [])
    if llama_cpp is not None:
        exports = [
            export.model_copy(update={"llama_cpp": llama_cpp}) if export.format == "gguf" else export
            for export in chosen.export
        ]
        chosen = chosen.model_copy(update={"export": exports})
    source = resolve(model, offline=offline)
    dataset = load_dataset(data)
    place = out or Path("bundles") / f"{source.name}-{chosen.name}"
    return Request(source, dataset, chosen, place, cache_dir, shell.cores(threads), force)
