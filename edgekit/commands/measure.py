"""`edgekit eval`, `edgekit profile` and `edgekit compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit import registry
from edgekit.base.errors import ConfigError
from edgekit.build import defaults
from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.proof.prove import Subject

CONTEXT = 2048  # maximum tokens of a prompt and its answer together

Artifact = Annotated[
    Path, typer.Argument(help="A .gguf file, an onnxruntime-genai folder or a Hugging Face folder.")
]


def register(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command("eval")(evaluate)
    app.command("profile")(profile)
    app.command("compare")(compare)


def subject_at(artifact: Path) -> Subject:
    """The format of `artifact`, recognised by its files; a single file is a GGUF file, whatever its name."""
    from edgekit.proof.prove import Subject
    from edgekit.proof.verify import subject_of

    return Subject(artifact, "gguf", "llama.cpp") if artifact.is_file() else subject_of(artifact)


def evaluate(
    artifact: Artifact,
    data: shell.Data = defaults.DEFAULT_DATA,
    columns: shell.Columns = "",
    data_revision: shell.DataRevision = "",
    drop_leaks: shell.DropLeaks = False,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Number of rows; 0 uses all.")] = 0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 64,
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The log of samples to write, JSONL; it must not exist without --force."
        ),
    ] = Path("samples.jsonl"),
    threads: shell.Threads = 0,
    force: shell.Force = False,
    offline: shell.Offline = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Measure the exact-match accuracy of greedy answers on the rows of a split, and log every sample."""
    from edgekit.base.artifacts import written_whole
    from edgekit.data.dataset import DataOptions
    from edgekit.data.splits import SPLITS
    from edgekit.evaluation import accuracy as evaluation

    if split not in SPLITS:
        raise ConfigError(f"There is no split '{split}'.", f"Use one of: {', '.join(SPLITS)}.")
    rows = getattr(shell.dataset(data, DataOptions(columns, data_revision, drop_leaks, offline)), split)
    rows = rows[:limit] if limit else rows
    with shell.working() as emit, written_whole(out, force=force) as log:
        runtime = subject_at(artifact).open_for(shell.cores(threads), CONTEXT)
        try:
            result = evaluation.evaluate(
                runtime, rows, max_tokens=max_tokens, log=log, emit=emit, stage="eval"
            )
        finally:
            runtime.close()
    shell.print_json(result) if json else shell.say(
        f"{result['accuracy']:.1%} of {result['n']} answers are right; samples: {out}"
    )


def profile(
    artifact: Artifact,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            "--threads", min=1, help="Thread count to measure. Can be repeated. Default: every core."
        ),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1, help="Length of the prompt.")] = 128,
    generate_tokens: Annotated[
        int, typer.Option("--generate-tokens", min=2, help="Length of the answer.")
    ] = 32,
    repeats: Annotated[int, typer.Option("--repeats", "-r", min=3, help="Number of runs.")] = 7,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Measure time to first token, tokens per second and peak memory, in a new process."""
    from edgekit.proof.verify import check_contents
    from edgekit.targets.target import Profile

    options = Profile(
        threads=threads or [shell.cores(0)],
        prompt_tokens=prompt_tokens,
        generate_tokens=generate_tokens,
        repeats=repeats,
    )
    subject = subject_at(artifact)
    with shell.working() as emit:
        check_contents(subject, emit)
        entries = registry.load("profiles", "profile")(artifact, subject.runtime, options, emit=emit)
    if json:
        shell.print_json(entries)
        return
    for entry in entries:
        speed = {name: entry[name] for name in ("ttft_ms", "prefill_tokens_per_s", "decode_tokens_per_s")}
        figures = "  ".join(
            f"{name} {value['median']:.1f} [{value['min']:.1f}..{value['max']:.1f}]"
            for name, value in speed.items()
        )
        shell.say(
            f"{entry['runtime']}, {entry['threads']} threads: {figures}  peak {entry['peak_rss_mib']:.0f} MiB"
        )


def compare(
    first: Annotated[Path, typer.Argument(help="A sample log, such as BUNDLE/samples/tuned.jsonl.")],
    second: Annotated[Path, typer.Argument(help="Another log of the same rows.")],
    json: shell.Json = False,
    verbose: shell.Verbose = False,
) -> None:
    """List the answers that changed between right and wrong in two sample logs, with McNemar's exact test."""
    from edgekit.evaluation.compare import compare as compare_logs

    result = compare_logs(first, second)
    if json:
        shell.print_json(result)
        return
    for name, value in result.items():
        shell.say(
            f"{name:<20} {value if not isinstance(value, list) else ', '.join(map(str, value)) or 'none'}"
        )
