"""`edgekit run`: ask a bundle, or chat with it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import edgekit
from edgekit.commands import shell
from edgekit.data.rows import Message

if TYPE_CHECKING:
    from edgekit.device.confidence import Refusal, Verdict


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
    refuse_out_of_scope: shell.RefuseOutOfScope = False
    threads: shell.Threads = 0
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Open a bundle that failed its gates.")
    ] = False
    json: shell.Json = False
    verbose: shell.Verbose = False


@shell.takes(RunOptions)
def run(options: RunOptions) -> None:
    """Ask a model a question and stream its answer. Without a question, start a chat."""
    refusal = shell.refusal(options.min_confidence, options.refuse_out_of_scope)
    with edgekit.load(
        options.bundle, options.format, threads=options.threads or None, allow_failed=options.allow_failed
    ) as model:
        if refusal is not None:
            model.calibrated.limits(refusal)
        if options.text is None and sys.stdin.isatty():
            _chat(model, options, refusal)
            return
        question = sys.stdin.read().strip() if options.text is None else options.text
        if options.json:
            shell.print_json({"format": model.format, **_document(model, question, options, refusal)})
            return
        _stream(model, question, options, refusal)


def _document(
    model: edgekit.LoadedModel, question: str, options: RunOptions, refusal: Refusal | None
) -> dict[str, Any]:
    """The answer, and what is told of it where some are refused; an answer that is not given is null."""
    if refusal is None:
        return {"answer": model.generate(question, max_tokens=options.max_tokens)}
    answer, verdict = _judged(model, question, options, refusal)
    return {"answer": None if verdict.abstained else answer, **verdict.fields}


def _judged(
    model: edgekit.LoadedModel, question: str | list[Message], options: RunOptions, refusal: Refusal
) -> tuple[str, Verdict]:
    """The whole answer, and whether it is given."""
    return model.sure_answer(
        question,
        refusal.minimum,
        refuse_out_of_scope=refusal.out_of_scope,
        max_tokens=options.max_tokens,
    )


def _stream(
    model: edgekit.LoadedModel, question: str | list[Message], options: RunOptions, refusal: Refusal | None
) -> str:
    """Print the answer while it is generated, or once it is known whether it is given; one that is not is empty."""
    from edgekit.base.texts import plain

    if refusal is not None:
        text, verdict = _judged(model, question, options, refusal)
        if verdict.abstained:
            sys.stderr.write(f"{verdict.why}\n")
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


def _chat(model: edgekit.LoadedModel, options: RunOptions, refusal: Refusal | None) -> None:
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
        if answer := _stream(model, messages, options, refusal):
            messages.append({"role": "assistant", "content": answer})
        else:
            messages.pop()
