"""`edgekit run`: ask a bundle, or chat with it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

import edgekit
from edgekit.commands import shell
from edgekit.data.rows import Message


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("run")(run)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of `edgekit run`."""

    bundle: Annotated[Path, typer.Argument(help="A bundle, a .gguf file or an onnxruntime-genai folder.")]
    text: Annotated[str | None, typer.Argument(help="The question. Without it, a chat starts.")] = None
    format: Annotated[str | None, typer.Option("--format", help="gguf or onnx.")] = None
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Maximum number of tokens in the answer.")
    ] = None
    min_confidence: shell.MinConfidence = None
    threads: shell.Threads = 0
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Open a bundle that failed its gates.")
    ] = False
    json: shell.Json = False
    verbose: shell.Verbose = False


@shell.takes(RunOptions)
def run(options: RunOptions) -> None:
    """Ask a model a question and stream its answer. Without a question, start a chat."""
    threads, asked = options.threads or None, shell.lowest(options.min_confidence)
    with edgekit.load(
        options.bundle, options.format, threads=threads, allow_failed=options.allow_failed
    ) as model:
        minimum = None if asked is None else model.calibrated.minimum(asked)
        if options.text is None and sys.stdin.isatty():
            _chat(model, options, minimum)
            return
        question = sys.stdin.read().strip() if options.text is None else options.text
        if options.json:
            shell.print_json({"format": model.format, **_document(model, question, options, minimum)})
            return
        _stream(model, question, options, minimum)


def _document(
    model: edgekit.LoadedModel, question: str, options: RunOptions, minimum: float | None
) -> dict[str, Any]:
    """The answer, and with a lowest confidence also the confidence; an answer that is not given is null."""
    if minimum is None:
        return {"answer": model.generate(question, max_tokens=options.max_tokens)}
    answer, verdict = model.sure_answer(question, minimum, max_tokens=options.max_tokens)
    return {"answer": None if verdict.abstained else answer, **verdict.fields}


def _stream(
    model: edgekit.LoadedModel, question: str | list[Message], options: RunOptions, minimum: float | None
) -> str:
    """Print the answer while it is generated, or once its confidence is known; an answer that is not given is empty."""
    from edgekit.base.texts import plain

    if minimum is not None:
        text, verdict = model.sure_answer(question, minimum, max_tokens=options.max_tokens)
        if verdict.abstained:
            sys.stderr.write(f"{verdict.why(minimum)}\n")
            return ""
        pieces: Iterable[str] = [text]
    else:
        pieces = model.stream(question, max_tokens=options.max_tokens)
    answer, terminal = "", sys.stdout.isatty()
    for piece in pieces:
        # a model may write escape sequences, which the terminal would execute
        sys.stdout.write(plain(piece.expandtabs(4)) if terminal else piece)
        sys.stdout.flush()
        answer += piece
    sys.stdout.write("\n")
    return answer


def _chat(model: edgekit.LoadedModel, options: RunOptions, minimum: float | None) -> None:
    sys.stderr.write("Chat. Press Enter on an empty line to start a new conversation, ctrl-d to exit.\n")
    messages: list[Message] = []
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            sys.stderr.write("\n")
            return
        if not question:
            messages.clear()
            continue
        messages.append({"role": "user", "content": question})
        if answer := _stream(model, messages, options, minimum):
            messages.append({"role": "assistant", "content": answer})
        else:
            messages.pop()
