"""`edgekit run`: ask a bundle, or chat with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import edgekit
from edgekit.commands import shell
from edgekit.data.rows import Message


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("run")(run)


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle, a .gguf file or an onnxruntime-genai folder.")],
    text: Annotated[str | None, typer.Argument(help="The question. Without it, a chat starts.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="gguf or onnx.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, help="Maximum number of tokens in the answer.")
    ] = None,
    threads: shell.Threads = 0,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Open a bundle that failed its gates.")
    ] = False,
    json: shell.Json = False,
    verbose: shell.Verbose = False,
) -> None:
    """Ask a model a question and stream its answer. Without a question, start a chat."""
    with edgekit.load(bundle, format, threads=threads or None, allow_failed=allow_failed) as model:
        if text is None and sys.stdin.isatty():
            _chat(model, max_tokens)
            return
        question = sys.stdin.read().strip() if text is None else text
        if json:
            shell.print_json(
                {"format": model.format, "answer": model.generate(question, max_tokens=max_tokens)}
            )
            return
        _stream(model, question, max_tokens)


def _stream(model: edgekit.LoadedModel, question: str | list[Message], max_tokens: int | None) -> str:
    from edgekit.base.texts import plain

    answer, terminal = "", sys.stdout.isatty()
    for piece in model.stream(question, max_tokens=max_tokens):
        # a model may write escape sequences, which the terminal would execute
        sys.stdout.write(plain(piece.expandtabs(4)) if terminal else piece)
        sys.stdout.flush()
        answer += piece
    sys.stdout.write("\n")
    return answer


def _chat(model: edgekit.LoadedModel, max_tokens: int | None) -> None:
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
        messages.append({"role": "assistant", "content": _stream(model, messages, max_tokens)})
