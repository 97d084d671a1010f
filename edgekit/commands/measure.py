"""`edgekit profile`."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit import registry
from edgekit.commands import shell
from edgekit.commands.artifact import Artifact


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("profile")(profile)


def profile(
    artifact: Artifact,
    threads: Annotated[
        list[int] | None,
        typer.Option(
            "--threads",
            min=1,
            max=shell.MOST_THREADS,
            help="Thread count to measure. Can be repeated. Default: every core.",
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
    from edgekit.proof.verify import check_contents, subject_of
    from edgekit.targets.target import Profile

    options = Profile(
        threads=threads or [shell.cores(0)],
        prompt_tokens=prompt_tokens,
        generate_tokens=generate_tokens,
        repeats=repeats,
    )
    subject = subject_of(artifact)
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
