"""`edgekit verify`: a bundle against its manifest, or any file against the model it claims to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.base.errors import ConfigError, GateError
from edgekit.build import defaults
from edgekit.commands import shell
from edgekit.device.manifest import MANIFEST

if TYPE_CHECKING:
    from edgekit.base.events import GateResult
    from edgekit.data.dataset import DataOptions
    from edgekit.data.rows import Row
    from edgekit.models.source import Source
    from edgekit.targets.target import Budget

# Without a target the prompts are general, and the model is less certain of its answers than one tuned for a task.
# llama.cpp's rounding of activations alone changes one of thirty most likely tokens, so an answer of 48 tokens differs
# after half of them, and at 4 bits after a third.
GENERAL = ["budget.answer_top1_agreement=0.9", "budget.greedy_agreement=0.3"]


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("verify")(verify)


def verify(
    path: Annotated[
        Path, typer.Argument(help="A bundle; or a .gguf file or onnxruntime-genai folder with --reference.")
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", "-r", help="The model it claims to be: a folder, hub id, .gguf, or smollm2-135m."
        ),
    ] = None,
    revision: shell.Revision = "",
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            "-d",
            help="Rows of the model's task; their prompts are asked in addition to general ones. "
            "With a bundle: the rows that it was built from, which are compared with its manifest.",
        ),
    ] = None,
    columns: shell.Columns = "",
    data_revision: shell.DataRevision = "",
    drop_leaks: shell.DropLeaks = False,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", "-t", help="The target whose budget sets the limits. Default: limits for general use."
        ),
    ] = None,
    set_: shell.Set = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Use fewer prompts; takes about a quarter of the time.")
    ] = False,
    cache_dir: shell.CacheDir = defaults.DEFAULT_CACHE,
    threads: shell.Threads = 0,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Prove that a file answers like the model it was made from, or show what differs.

    The files of a BUNDLE are compared with its manifest, and each format is asked the recorded golden questions again.
    With --data, the rows are read with the options of the build, unless others are given, and must be those of the build.
    Any other FILE needs --reference MODEL: its structure, weights, tokenizer, template, stop tokens and next-token
    distributions are compared with those of the model.

    The file is opened in a child process. The limits are 5 minutes for each call of its runtime and one hour for all
    calls together, plus the same again for each GiB of the file, and 2 GiB of memory plus four times the size of the
    file. A file that exceeds a limit or crashes the process is reported as damaged, with exit code 5.
    """
    from edgekit.data.dataset import DataOptions

    reading = DataOptions(columns, data_revision, drop_leaks, offline)
    if reading.arguments and data is None:
        raise ConfigError(
            f"{' '.join(reading.arguments)} says how rows are read, and no rows are given. Nothing was checked.",
            "Add --data ROWS.",
        )
    if (path / MANIFEST).is_file() and reference is None:
        given = {"--revision": revision, "--target": target, "--set": set_, "--quick": quick}
        if unused := [name for name, value in given.items() if value]:
            raise ConfigError(
                f"{path} is a bundle, which is compared with its own manifest, and {' and '.join(unused)} "
                f"{'needs' if len(unused) == 1 else 'need'} a reference model. Nothing was checked.",
                f"Leave out {' and '.join(unused)}, or give a file of the bundle with --reference MODEL.",
            )
        result = _bundle(path, data, reading, threads)
    elif reference is None:
        raise ConfigError(
            f"{path} is not a bundle, so it needs a reference model. Nothing was checked.",
            f"Run `edgekit verify {path} --reference MODEL`.",
        )
    else:
        from edgekit import registry
        from edgekit.models.source import resolve
        from edgekit.proof.verify import subject_of

        subject_of(path)
        source = resolve(reference, revision, offline=offline)
        budget = (
            registry.load("profiles", "targets").load(target, set_ or []).budget
            if target
            else general_budget(set_)
        )
        rows = shell.dataset(data, reading).validation if data else []
        result = _file(path, source, rows, budget, cache_dir, quick=quick, threads=shell.cores(threads))
    if json:
        shell.print_json(result)
    else:
        from rich.console import Console

        from edgekit.report.gates_table import gates_table

        Console().print(gates_table(result))
    failed = [gate["name"] for gate in result["gates"] if not gate["passed"]]
    if failed:
        raise GateError(
            f"{path} failed these checks: {', '.join(failed)}. The file was not changed.",
            "The last column of the table says what to do.",
        )


def general_budget(changes: Sequence[str] | None = None) -> Budget:
    """The limits of a file for general use, after changes such as `budget.mean_kld_nats=0.1`."""
    from edgekit import registry

    values = [*GENERAL, *(changes or [])]
    found: Budget = registry.load("profiles", "targets").load(defaults.DEFAULT_TARGET, values).budget
    return found


def _bundle(path: Path, data: str | None, options: DataOptions, threads: int) -> dict[str, Any]:
    from edgekit.device.manifest import check_files, read_manifest
    from edgekit.proof.golden import replay

    manifest = read_manifest(path)
    check_files(path, manifest)
    rows, gates = _rows_of_build(manifest, data, options) if data else ({}, [])
    with shell.working() as emit:
        for gate in gates:
            emit(gate)
        gates += replay(path, manifest, emit, threads=threads or manifest["threads"])
    found = [_plain(gate) for gate in gates]
    return {"path": str(path), "reference": "its own manifest", "gates": found, **rows}


def _rows_of_build(
    manifest: Mapping[str, Any], data: str, given: DataOptions
) -> tuple[dict[str, Any], list[GateResult]]:
    """Whether the rows `data` are those of a bundle, read as its build did; what was read, and the gate."""
    from edgekit.base.events import Alert, GateResult

    built = manifest.get("data")
    built = built if isinstance(built, dict) else {}
    options = given.as_built(data, built)
    own = "as the manifest of the bundle records" if options != given else "as given"
    said = f"{data} is read {own}: {' '.join(options.arguments) or 'without options'}"
    with shell.working() as emit:
        emit(Alert("info", said))
    found = shell.dataset(data, options)
    same = found.digest == built.get("sha256")
    counts = ", ".join(f"{count:,} {split}" for split, count in found.rows.items())
    detail = f"{counts} rows; {said}"
    if not same:
        detail = f"these are not the rows of the build: {detail}; the manifest names '{built.get('name')}'"
    rows = {"name": found.name, "sha256": found.digest, "rows": found.rows, "options": options.arguments}
    return {"data": rows}, [GateResult("build.rows", float(same), 1.0, same, detail, "build")]


def _file(
    path: Path,
    source: Source,
    rows: Sequence[Row],
    budget: Budget,
    cache_dir: Path,
    *,
    quick: bool,
    threads: int,
) -> dict[str, Any]:
    from edgekit.base.cache import Cache
    from edgekit.base.events import Alert, Event, fan_out
    from edgekit.proof.verify import verify_file

    warnings: list[str] = []

    def keep(event: Event) -> None:
        if isinstance(event, Alert) and event.level == "warning" and event.message not in warnings:
            warnings.append(event.message)

    with shell.working() as emit:
        cache = Cache(cache_dir, fan_out(emit, keep))
        gates = verify_file(path, source, rows, budget, cache, quick=quick, threads=threads)
    found = [_plain(gate) for gate in gates]
    return {
        "path": str(path),
        "reference": source.given,
        "chat_checked": any(gate.name.endswith(".template_branches") for gate in gates),
        "gates": found,
        "warnings": warnings,
    }


def _plain(gate: Any) -> dict[str, Any]:
    return {key: value for key, value in asdict(gate).items() if key != "time"}
