"""`edgekit drift capture|score`: stores a reference's distributions on a text, and compares files with them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekit.base.errors import ConfigError, reason
from edgekit.commands import shell

app = typer.Typer(
    help="Store a model's next-token distributions on a text, and measure the KL divergence of other files from them.",
    no_args_is_help=True,
)

Artifact = Annotated[
    Path, typer.Argument(help="A .gguf file, an onnxruntime-genai folder or a Hugging Face folder.")
]


def register(parent: typer.Typer) -> None:
    """Add `drift` to `parent`."""
    parent.add_typer(app, name="drift")


@app.command("capture")
def capture(
    model: Artifact,
    text: Annotated[Path, typer.Option("--text", help="A text file in UTF-8.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The .npz file to write; it must not exist without --force.")
    ] = Path("reference.npz"),
    context: Annotated[int, typer.Option("--context", min=8, help="Number of tokens in a window.")] = 512,
    windows: Annotated[
        int, typer.Option("--windows", min=0, help="Number of windows; 0 uses the whole text.")
    ] = 0,
    skip: Annotated[
        int | None,
        typer.Option(
            "--skip", min=0, help="Positions at the start of a window that are not scored. Default: half."
        ),
    ] = None,
    threads: shell.Threads = 0,
    force: shell.Force = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Store a model's next-token distributions on a text.

    The text is cut into windows. As in llama-perplexity, the first half of each window is only context. For each position
    the file holds the 256 most likely tokens, a sample of 256 from the rest, and the probability of the rest. For a
    vocabulary of 49,152 tokens the file is 1/24 the size of the 16-bit logits.
    """
    from edgekit.base.artifacts import written_whole
    from edgekit.proof import drift

    skip = context // 2 if skip is None else skip
    if skip >= context:
        raise ConfigError(
            f"--skip {skip} leaves no positions in a window of {context}.", "Use a value below --context."
        )
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{text} cannot be read: {reason(error)}. Nothing was written.", "Give a text file in UTF-8."
        ) from error
    with shell.working() as emit, written_whole(out, inputs=[model, text], force=force, file=True) as staging:
        runtime = _open(model, threads, context)
        try:
            ids = runtime.encode(words)
            starts = range(0, len(ids) - context + 1, context)
            sequences = [ids[start : start + context] for start in starts][: windows or None]
            if not sequences:
                raise ConfigError(
                    f"{text} has {len(ids)} tokens, less than one window of {context}.",
                    "Use a longer text or a lower --context.",
                )
            store = drift.capture(runtime, sequences, [skip] * len(sequences), emit)
        finally:
            runtime.close()
        store.save(staging)
    positions, size = len(store.tail), out.stat().st_size
    result: dict[str, Any] = {
        "store": str(out),
        "windows": len(sequences),
        "positions": positions,
        "bytes": size,
        "bytes_of_16_bit_logits": 2 * store.vocab_size * positions,
    }
    shell.print_json(result) if json else shell.say(
        f"Stored: {out}, {positions} positions in {size / 2**20:.1f} MiB\n"
        f"Next: edgekit drift score FILE --reference {out}"
    )


@app.command("score")
def score(
    file: Artifact,
    reference: Annotated[Path, typer.Option("--reference", "-r", help="A file that `drift capture` wrote.")],
    worst: Annotated[
        int, typer.Option("--worst", min=0, help="Number of positions with the largest divergence to show.")
    ] = 3,
    threads: shell.Threads = 0,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Measure the KL divergence of a file from the reference: mean, 99th percentile, and top-1 agreement."""
    from edgekit.proof import drift

    store = drift.Reference.load(reference)
    with shell.working() as emit:
        runtime = _open(file, threads, int(store.lengths.max()))
        try:
            scored = drift.score(runtime, store, emit)
            places = [_place(runtime, store, scored, index) for index in scored.worst(worst)]
        finally:
            runtime.close()
    found = scored.drift
    if json:
        shell.print_json({**asdict(found), "worst": places})
        return
    low, high = found.mean_kld_95 or (found.mean_kld_nats, found.mean_kld_nats)
    shell.say(
        f"mean KLD {found.mean_kld_nats:.5f} nats (95 %: {low:.5f} to {high:.5f}), p99 {found.p99_kld_nats:.3f}, "
        f"same token {found.top1_agreement:.1%} of {found.n_tokens} positions"
    )
    for place in places:
        shell.say(
            f"  {place['kld_nats']:.2f} nats after {place['after']!r}: {place['expected']!r}, now {place['got']!r}"
        )


def _open(path: Path, threads: int, context: int) -> Any:
    from edgekit.proof.verify import subject_of

    return subject_of(path).open_for(shell.cores(threads), context)


def _place(runtime: Any, store: Any, scored: Any, index: int) -> dict[str, Any]:
    ids = store.sequences[int(scored.sequence[index])][: int(scored.position[index]) + 1]
    return {
        "kld_nats": round(float(scored.klds[index]), 4),
        "after": runtime.decode(ids[-12:]),
        "expected": runtime.decode([int(scored.expected[index])]),
        "got": runtime.decode([int(scored.got[index])]),
    }
