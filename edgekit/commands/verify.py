"""`edgekit verify`: a bundle against its manifest, or any file against the model it claims to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.base.errors import ConfigError, GateError
from edgekit.commands import shell
from edgekit.device.manifest import MANIFEST

if TYPE_CHECKING:
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
            help="Rows of the model's task; their prompts are asked in addition to general ones.",
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
    cache_dir: shell.CacheDir = shell.DEFAULT_CACHE,
    threads: shell.Threads = 0,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Prove that a file answers like the model it was made from, or show what differs.

    The files of a BUNDLE are compared with its manifest, and each format is asked the recorded golden questions again.
    Any other FILE needs --reference MODEL: its structure, weights, tokenizer, template, stop tokens and next-token
    distributions are compared with those of the model.

    The file is opened in a child process. The limits are 5 minutes for each call of its runtime and one hour for all
    calls together, plus the same again for each GiB of the file, and 2 GiB of memory plus four times the size of the
    file. A file that exceeds a limit or crashes the process is reported as damaged, with exit code 5.
    """
    if (path / MANIFEST).is_file() and reference is None:
        result = _bundle(path, threads)
    elif reference is None:
        raise ConfigError(
            f"{path} is not a bundle, so it needs a reference model. Nothing was checked.",
            f"Run `edgekit verify {path} --reference MODEL`.",
        )
    else:
        from edgekit import registry
        from edgekit.data.dataset import DataOptions
        from edgekit.models.source import resolve
        from edgekit.proof.verify import subject_of

        subject_of(path)
        source = resolve(reference, revision, offline=offline)
        values = [*([] if target else GENERAL), *(set_ or [])]
        budget = registry.load("profiles", "targets").load(target or shell.DEFAULT_TARGET, values).budget
        reading = DataOptions(columns, data_revision, drop_leaks, offline)
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


def _bundle(path: Path, threads: int) -> dict[str, Any]:
    from edgekit.device.manifest import check_files, read_manifest
    from edgekit.proof.golden import replay

    manifest = read_manifest(path)
    check_files(path, manifest)
    with shell.working() as emit:
        gates = replay(path, manifest, emit, threads=threads or manifest["threads"])
    return {"path": str(path), "reference": "its own manifest", "gates": [_plain(gate) for gate in gates]}


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
