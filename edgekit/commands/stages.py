"""Verbs for single stages: `edgekit tune`, `merge`, `prune`, `export`."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from edgekit.base.artifacts import check_output, written_whole
from edgekit.base.errors import UnsupportedError
from edgekit.build import defaults
from edgekit.commands import shell

Folder = Annotated[Path, typer.Argument(help="A Hugging Face model folder.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command("tune")(tune)
    app.command("merge")(merge)
    app.command("prune")(prune)
    app.command("export")(export)


def tune(
    out: shell.NewPath = Path("adapter"),
    target: shell.TargetName = defaults.DEFAULT_TARGET,
    model: shell.Model = defaults.DEFAULT_MODEL,
    revision: shell.Revision = "",
    data: shell.Data = defaults.DEFAULT_DATA,
    columns: shell.Columns = "",
    data_revision: shell.DataRevision = "",
    drop_leaks: shell.DropLeaks = False,
    set_: shell.Set = None,
    robust: shell.Robust = False,
    chat_template: shell.ChatTemplate = "",
    show_mask: Annotated[
        int,
        typer.Option(
            "--show-mask", metavar="N", min=0, help="Print N rows with the trained spans marked, and exit."
        ),
    ] = 0,
    cache_dir: shell.CacheDir = defaults.DEFAULT_CACHE,
    threads: shell.Threads = 0,
    force: shell.Force = False,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Tune a LoRA adapter on the answers of the training rows."""
    from edgekit.base.cache import Cache
    from edgekit.build import stages
    from edgekit.build.plan import missing_parts, missing_parts_error, no_template_error
    from edgekit.build.request import Order
    from edgekit.data.dataset import DataOptions
    from edgekit.models.source import has_template
    from edgekit.proof.source import bring_in

    reading = DataOptions(columns, data_revision, drop_leaks, offline)
    order = Order(
        target, model, data, out, shell.changes(set_, robust), "", None, cache_dir, threads, force, offline, reading,
        chat_template, revision,
    )  # fmt: skip
    request = shell.requested(order)
    if parts := missing_parts([]):
        raise missing_parts_error(parts)
    if not has_template(request.source):
        raise no_template_error(request.source.name, "tune", order.arguments)
    if not show_mask:
        check_output(out, inputs=request.inputs, force=force)
    with shell.working() as emit:
        cache = Cache(cache_dir, emit)
        base = bring_in(cache, request.source)
        if show_mask:
            from edgekit.models.tokenizer import ModelTokenizer
            from edgekit.tuning.encode import encode_rows
            from edgekit.tuning.encode import show_mask as mask_lines

            tokenizer = ModelTokenizer(base.path)
            encoded, _ = encode_rows(
                request.data.train[:show_mask],
                tokenizer.chat_template,
                tokenizer,
                request.target.tune.max_length,
            )
            lines = mask_lines(encoded, tokenizer, show_mask)
        else:
            with written_whole(out, force=force) as staging:
                adapter = stages.tune(cache, request, base)
                shutil.copytree(adapter.path, staging)
                (staging / "stage.json").unlink()
    if show_mask:
        shell.print_json(lines) if json else shell.say("\n".join(lines))
        return
    shell.print_json({"adapter": str(out), **adapter.result}) if json else shell.say(
        f"Adapter: {out}\nNext: edgekit merge {base.path} {out} --out merged"
    )


def merge(
    base: Folder,
    adapter: Annotated[Path, typer.Argument(help="A PEFT adapter folder.")],
    out: shell.NewPath = Path("merged"),
    dtype: Annotated[
        str, typer.Option("--dtype", help="own (as in the base), float32, bfloat16 or float16.")
    ] = "own",
    force: shell.Force = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Merge a LoRA adapter into its base, tensor by tensor; computed in fp32 and stored in the base's own type."""
    from edgekit import registry

    shell.need_folder(base, "config.json")
    shell.need_folder(adapter, "adapter_config.json")
    with shell.working() as emit, written_whole(out, inputs=[base, adapter], force=force) as staging:
        registry.load("stages", "merge")(base, adapter, staging, dtype=dtype, emit=emit)
    shell.print_json({"model": str(out)}) if json else shell.say(
        f"Merged: {out}\nNext: edgekit export {out} --out exported"
    )


def prune(
    model: Folder,
    drop_layers: Annotated[int, typer.Option("--drop-layers", min=1, help="Number of layers to remove.")],
    out: shell.NewPath = Path("pruned"),
    data: shell.Data = defaults.DEFAULT_DATA,
    columns: shell.Columns = "",
    data_revision: shell.DataRevision = "",
    drop_leaks: shell.DropLeaks = False,
    force: shell.Force = False,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Remove a model's least influential decoder layers."""
    from edgekit import registry
    from edgekit.data.dataset import DataOptions
    from edgekit.models.tokenizer import ModelTokenizer
    from edgekit.targets.target import Prune

    shell.need_folder(model, "config.json")
    rows = shell.dataset(data, DataOptions(columns, data_revision, drop_leaks, offline)).train[:64]
    with shell.working() as emit, written_whole(out, inputs=[model, Path(data)], force=force) as staging:
        calibration = ModelTokenizer(model).render_ids(rows)
        options = Prune(drop_layers=drop_layers)
        result = registry.load("stages", "prune")(model, staging, options, calibration=calibration, emit=emit)
    dropped = ", ".join(str(layer) for layer in result["dropped"])
    shell.print_json({"model": str(out), **result}) if json else shell.say(
        f"Pruned: {out} (without layers {dropped})"
    )


def export(
    model: Folder,
    out: shell.NewPath = Path("exported"),
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", help="A PEFT adapter of this base, to export as a separate file."),
    ] = None,
    target: shell.TargetName = defaults.DEFAULT_TARGET,
    data: shell.Data = defaults.DEFAULT_DATA,
    columns: shell.Columns = "",
    data_revision: shell.DataRevision = "",
    drop_leaks: shell.DropLeaks = False,
    set_: shell.Set = None,
    formats: shell.Formats = "",
    chat_template: shell.ChatTemplate = "",
    cache_dir: shell.CacheDir = defaults.DEFAULT_CACHE,
    threads: shell.Threads = 0,
    force: shell.Force = False,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Export a model folder in the target's formats without tuning, and prove each file.

    With --adapter, the folder is the adapter's base: each format gets the base, with the adapter in adapters/ beside it.
    The base is proven on plain text; the base with its adapter is proven against their merge, on --data.
    """
    from edgekit import registry
    from edgekit.base.cache import Cache
    from edgekit.base.errors import GateError
    from edgekit.base.output import output
    from edgekit.build import adapters, checks, stages
    from edgekit.build.bundle import put
    from edgekit.build.plan import less_command, no_template_error, without_option
    from edgekit.build.request import Order
    from edgekit.data.dataset import DataOptions
    from edgekit.models.source import has_template, read_config
    from edgekit.proof.source import bring_in
    from edgekit.report import summary

    shell.need_folder(model, "config.json")
    if adapter:
        shell.need_folder(adapter, "adapter_config.json")
    order = Order(
        target, str(model), data, out, set_ or [], formats, None, cache_dir, threads, force, offline,
        reading=DataOptions(columns, data_revision, drop_leaks, offline), chat_template=chat_template,
    )  # fmt: skip
    request = shell.requested(replace(order, offline=True))
    config, given = read_config(model), request.target.export
    refused = {
        options.format: why
        for options in given
        if (why := registry.load("exporters", options.format).refusal(config, options))
    }
    inputs = [*request.inputs, *([adapter] if adapter else [])]
    typed = [str(model), *without_option(order.arguments, "--model")]
    typed += ["--adapter", str(adapter)] if adapter else []
    if refused:
        possible = ",".join(options.format for options in given if options.format not in refused)
        raise UnsupportedError(
            f"{' '.join(f'{name}: {why}' for name, why in refused.items())} Nothing was started.",
            less_command("export", typed, possible) or "`edgekit targets list` shows other targets.",
        )
    if not has_template(request.source):
        raise no_template_error(str(model), "export", typed)
    with shell.working() as emit:
        cache = Cache(cache_dir, emit)
        with output(cache, out, inputs=inputs, force=force, give=adapter is None) as written:
            source = bring_in(cache, request.source)
            artifacts = [stages.export(cache, request, source, options) for options in request.target.export]
            # with --adapter the base alone is not asked the task, so it need not be certain of its answers
            reference = checks.capture(cache, request, source, conversations=adapter is None)
            for artifact in artifacts:
                checks.verify(cache, request, reference, source, source, artifact)
            written.folder.mkdir()
            for artifact in artifacts:
                put(written, artifact)
            beside = (
                adapters.export(cache, request, source, adapter, artifacts, written.folder) if adapter else {}
            )
    failed = [gate for gate in cache.gates if not gate.passed]
    files = {artifact.format: str(out / artifact.output) for artifact in artifacts}
    swapped = {format: str(out / name) for format, name in beside.items()}
    shell.print_json(
        {"files": files, "adapters": swapped, "gates": [asdict(gate) for gate in cache.gates]}
    ) if json else shell.say("\n".join(f"Exported: {path}" for path in [*files.values(), *swapped.values()]))
    if failed:
        raise GateError(
            f"The export was written, but it failed {failed[0].name}: {failed[0].detail}",
            summary.advice(asdict(failed[0])),
        )
