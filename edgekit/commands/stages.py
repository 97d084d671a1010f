"""One stage each: `edgekit tune`, `merge`, `prune`, `quantize`, `export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import ConfigError, UnsupportedError
from edgekit.commands import shell

Folder = Annotated[Path, typer.Argument(help="A Hugging Face model folder.")]
NewPath = Annotated[Path, typer.Option("--out", "-o", help="Where to write; must be new.")]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command("tune")(tune)
    app.command("merge")(merge)
    app.command("prune")(prune)
    app.command("quantize")(quantize)
    app.command("export")(export)


def tune(
    out: NewPath = Path("adapter"),
    target: shell.TargetName = shell.DEFAULT_TARGET,
    model: shell.Model = shell.DEFAULT_MODEL,
    data: shell.Data = shell.DEFAULT_DATA,
    set_: shell.Set = None,
    show_mask: Annotated[
        int,
        typer.Option(
            "--show-mask", metavar="N", min=0, help="Print N rows with the learned spans marked, and stop."
        ),
    ] = 0,
    cache_dir: shell.CacheDir = shell.DEFAULT_CACHE,
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
    from edgekit.build.plan import missing_parts, missing_parts_error
    from edgekit.build.request import Order
    from edgekit.proof.source import bring_in

    request = Order(target, model, data, out, set_ or [], None, cache_dir, threads, force, offline).request()
    if parts := missing_parts([]):
        raise missing_parts_error(parts)
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
                from edgekit.build.bundle import copy

                adapter = stages.tune(cache, request, base)
                copy(adapter.path, staging)
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
    out: NewPath = Path("merged"),
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    force: shell.Force = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Merge a LoRA adapter into its base, tensor by tensor, in fp32."""
    from edgekit import registry

    _need_folder(base, "config.json")
    _need_folder(adapter, "adapter_config.json")
    with shell.working() as emit, written_whole(out, force=force) as staging:
        registry.load("stages", "merge")(base, adapter, staging, dtype=dtype, emit=emit)
    shell.print_json({"model": str(out)}) if json else shell.say(
        f"Merged: {out}\nNext: edgekit export {out} --out exported"
    )


def prune(
    model: Folder,
    drop_layers: Annotated[int, typer.Option("--drop-layers", min=1, help="Layers to remove.")],
    out: NewPath = Path("pruned"),
    data: shell.Data = shell.DEFAULT_DATA,
    force: shell.Force = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Remove a model's least influential decoder layers."""
    from edgekit import registry
    from edgekit.data.dataset import load_dataset
    from edgekit.models.tokenizer import ModelTokenizer
    from edgekit.targets.target import Prune

    _need_folder(model, "config.json")
    rows = load_dataset(data).train[:64]
    with shell.working() as emit, written_whole(out, force=force) as staging:
        calibration = ModelTokenizer(model).render_ids(rows)
        options = Prune(drop_layers=drop_layers)
        result = registry.load("stages", "prune")(model, staging, options, calibration=calibration, emit=emit)
    dropped = ", ".join(str(layer) for layer in result["dropped"])
    shell.print_json({"model": str(out), **result}) if json else shell.say(
        f"Pruned: {out} (without layers {dropped})"
    )


def quantize(
    source: Annotated[
        Path, typer.Argument(help="A Hugging Face model folder, or a .gguf file of type F32, F16 or BF16.")
    ],
    out: NewPath = Path("model.gguf"),
    type: Annotated[str, typer.Option("--type", help="llama.cpp's file type, such as Q4_K_M.")] = "Q4_K_M",
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", help="A PEFT adapter folder to merge in; needs a model folder."),
    ] = None,
    max_ram: Annotated[
        int | None,
        typer.Option("--max-ram", metavar="MIB", min=1, help="Refuse to start if it may take more memory."),
    ] = None,
    threads: shell.Threads = 0,
    force: shell.Force = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Quantize to a GGUF file: a model folder tensor by tensor, with no float file in between, or a GGUF file.

    From a folder, memory does not grow with the number of layers, and the only disk it takes is the new file's.
    """
    from edgekit import registry
    from edgekit.targets.target import GGUF_TYPES, GgufExport

    if type.upper() not in GGUF_TYPES:
        raise ConfigError(f"There is no GGUF type '{type}'.", f"Known: {', '.join(GGUF_TYPES)}.")
    if source.is_dir():
        _stream(source, out, type.upper(), adapter, max_ram, shell.cores(threads), force)
    elif not source.is_file():
        raise ConfigError(f"There is no file {source}.", "Check the path.")
    elif adapter or max_ram:
        raise ConfigError(
            f"--adapter and --max-ram need a model folder, and {source} is a file.",
            "Name the folder instead.",
        )
    else:
        with shell.working() as emit, written_whole(out, force=force) as staging:
            options = GgufExport.model_validate({"format": "gguf", "type": type.upper()})
            registry.load("stages", "quantize")(
                source, staging, options, threads=shell.cores(threads), emit=emit
            )
    shell.print_json({"file": str(out)}) if json else shell.say(
        f"Quantized: {out}\nNext: edgekit verify {out} --reference MODEL"
    )


def _stream(
    source: Path, out: Path, type: str, adapter: Path | None, max_ram: int | None, threads: int, force: bool
) -> None:
    from edgekit import registry
    from edgekit.models.source import read_config
    from edgekit.targets.target import GgufExport

    _need_folder(source, "config.json")
    if adapter:
        _need_folder(adapter, "adapter_config.json")
    config, options = read_config(source), GgufExport.model_validate({"format": "gguf", "type": type})
    if refusal := registry.load("exporters", "gguf").refusal(config, options):
        raise UnsupportedError(f"gguf: {refusal} Nothing was started.", "Choose another model.")
    needed = registry.load("stages", "stream-memory")(config, options, threads, adapter=adapter) / 2**20
    if max_ram and needed > max_ram:
        raise ConfigError(
            f"Quantizing {source} with {threads} threads may take {needed:.0f} MiB of memory, more than --max-ram {max_ram}. "
            "Nothing was started.",
            "Use --threads 1, or allow more." if threads > 1 else "Allow more.",
        )
    with shell.working() as emit, written_whole(out, force=force) as staging:
        registry.load("stages", "stream")(
            source, staging, options, adapter=adapter, threads=threads, emit=emit
        )


def export(
    model: Folder,
    out: NewPath = Path("exported"),
    adapter: Annotated[
        Path | None,
        typer.Option(
            "--adapter", help="A PEFT adapter of this base, exported for swapping in instead of merged."
        ),
    ] = None,
    target: shell.TargetName = shell.DEFAULT_TARGET,
    data: shell.Data = shell.DEFAULT_DATA,
    set_: shell.Set = None,
    cache_dir: shell.CacheDir = shell.DEFAULT_CACHE,
    threads: shell.Threads = 0,
    force: shell.Force = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Export a model folder in the target's formats, and prove each file; no tuning.

    With --adapter the folder is the adapter's base: each format's base is written with the adapter beside it in
    adapters/. The base is proven on plain text, and the base with its adapter is proven against their merge on --data.
    """
    from edgekit import registry
    from edgekit.base.cache import Cache
    from edgekit.base.errors import GateError
    from edgekit.build import adapters, checks, stages
    from edgekit.build.bundle import copy
    from edgekit.build.request import Order
    from edgekit.models.source import read_config
    from edgekit.proof.source import bring_in

    _need_folder(model, "config.json")
    if adapter:
        _need_folder(adapter, "adapter_config.json")
    request = Order(
        target, str(model), data, out, set_ or [], None, cache_dir, threads, force, offline=True
    ).request()
    config = read_config(model)
    for options in request.target.export:
        if refusal := registry.load("exporters", options.format).refusal(config, options):
            raise UnsupportedError(
                f"{options.format}: {refusal} Nothing was started.", "edgekit targets list"
            )
    with shell.working() as emit, written_whole(out, force=force) as staging:
        cache = Cache(cache_dir, emit)
        source = bring_in(cache, request.source)
        artifacts = [stages.export(cache, request, source, options) for options in request.target.export]
        # with --adapter the base is never asked the task alone, and need not be sure of it
        reference = checks.capture(cache, request, source, conversations=adapter is None)
        for artifact in artifacts:
            checks.verify(cache, request, reference, source, source, artifact)
        staging.mkdir()
        for artifact in artifacts:
            copy(artifact.path, staging / artifact.output)
        written = adapters.export(cache, request, source, adapter, artifacts, staging) if adapter else {}
    failed = [gate for gate in cache.gates if not gate.passed]
    files = {artifact.format: str(out / artifact.output) for artifact in artifacts}
    swapped = {format: str(out / name) for format, name in written.items()}
    shell.print_json(
        {"files": files, "adapters": swapped, "gates": [asdict(gate) for gate in cache.gates]}
    ) if json else shell.say("\n".join(f"Exported: {path}" for path in [*files.values(), *swapped.values()]))
    if failed:
        raise GateError(
            f"Exported, but {failed[0].name} failed: {failed[0].detail}", "Choose a target with more bits."
        )


def _need_folder(folder: Path, file: str) -> None:
    if not (folder / file).is_file():
        raise ConfigError(f"{folder} is not a folder with {file}.", "Check the path.")
