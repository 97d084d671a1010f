"""Golden answers: the answers of each format of a bundle at build time, compared on every device that it is copied to.

A copy with correct digests can still give other answers, with another runtime version or on another processor. The check
needs neither the original model nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from edgekit import registry
from edgekit.base.errors import ConfigError, CorruptError, reason
from edgekit.base.events import Emit, GateResult, Progress, ignore
from edgekit.data.rows import Message
from edgekit.device.isolated import open_isolated
from edgekit.device.prompt import encode_prompt
from edgekit.proof.battery import battery
from edgekit.registry import Runtime

SCHEMA = "edgekit.golden/1"
FILE = "golden.json"
CANDIDATES, ANSWERS = 24, 8
TEXTS = 96


class Text(TypedDict):
    """A text and its token ids."""

    text: str
    ids: list[int]


class Answer(TypedDict):
    """A conversation, its rendered prompt, the prompt's ids (not in older bundles), and the answer."""

    messages: list[dict[str, Any]]
    rendered: str
    prompt: NotRequired[list[int]]
    ids: list[int]
    text: str


class Golden(TypedDict):
    """What one format of a bundle made of texts and conversations."""

    max_tokens: int
    texts: list[Text]
    answers: list[Answer]


class _File(TypedDict):
    schema: str
    formats: dict[str, Golden]


def read_golden(folder: Path) -> dict[str, Golden]:
    """The golden answers of a bundle, by format. Raises `CorruptError` when the file is missing or of another form."""
    try:
        file = TypeAdapter(_File).validate_json((folder / FILE).read_bytes(), strict=True)
    except OSError as error:
        fault = reason(error)
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    else:
        if file["schema"] == SCHEMA:
            return file["formats"]
        fault = f"its schema is {file['schema'][:40]!r} instead of {SCHEMA}"
    raise CorruptError(
        f"{folder / FILE} cannot be read: {fault}.", "Copy the bundle again, or build it again."
    )


def capture(
    runtime: Runtime,
    prompts: Sequence[Sequence[Message]],
    max_tokens: int,
    emit: Emit = ignore,
    *,
    stage: str = "golden",
) -> dict[str, Any]:
    """What an opened file makes of texts and prompts: token ids, rendered prompts and greedy answers.

    It keeps the eight prompts whose answers depend least on rounding: those with the largest minimum difference between
    the logits of the chosen token and the next. Rounding on another processor must not look like another model.
    """
    all_texts = battery()
    step = max(1, len(all_texts) // TEXTS)
    texts = [{"text": text, "ids": runtime.encode(text)} for text in all_texts[::step]]
    answers = []
    for done, messages in enumerate(prompts[:CANDIDATES], 1):
        rendered = runtime.chat_template.render(messages, add_generation_prompt=True)
        prompt = encode_prompt(runtime, messages)
        answer = list(runtime.generate(prompt, max_tokens))
        rows = runtime.logits([*prompt, *answer], len(prompt) - 1)
        top = -_two_largest(rows)
        plain = [dict(message) for message in messages]
        kept: dict[str, Any] = {"messages": plain, "rendered": rendered, "prompt": prompt, "ids": answer}
        answers.append((float((top[:, 0] - top[:, 1]).min()), kept))
        emit(Progress(stage, done, len(prompts[:CANDIDATES]), "answers"))
    answers.sort(key=lambda answer: -answer[0])
    return {
        "max_tokens": max_tokens,
        "texts": texts,
        "answers": [{**kept, "text": runtime.decode(kept["ids"])} for _, kept in answers[:ANSWERS]],
    }


def prompt_ids(runtime: Runtime, answer: Answer) -> list[int]:
    """Token ids of a golden answer's conversation, encoded as when the answer was recorded.

    That is how an app's prompts are encoded. In bundles that were made before, the answers hold no `prompt`, and control
    tokens in a message were read as such. Raises `ConfigError` as `encode_prompt` does.
    """
    return (
        encode_prompt(runtime, answer["messages"])
        if "prompt" in answer
        else runtime.encode(answer["rendered"])
    )


def _two_largest(rows: Any) -> Any:
    """The two largest logits of each row, negated, the largest first: `(T, 2)`."""
    import numpy as np

    return np.sort(np.partition(-rows, 1, axis=1)[:, :2], axis=1)


def open_here(runtime: str, path: Path, *, threads: int) -> Runtime:
    """Open a file in this process, for callers that are child processes themselves."""
    opened: Runtime = registry.load("runtimes", runtime)(path, threads=threads)
    return opened


def replay(
    folder: Path,
    manifest: Mapping[str, Any],
    emit: Emit = ignore,
    *,
    threads: int,
    opener: Callable[..., Runtime] = open_isolated,
) -> list[GateResult]:
    """Ask every format of a bundle the golden questions again; each gate is emitted when it is measured.

    `opener(runtime, path, threads=)` opens a file, by default in a child process. Raises `CorruptError` when the bundle
    has no golden answers, or a file that its runtime cannot load.
    """
    formats = read_golden(folder)
    verdict = manifest["verdict"]
    found = [
        GateResult(
            "build.verdict",
            float(verdict == "pass"),
            1.0,
            verdict == "pass",
            f"verdict of the build: {verdict}",
            "build",
        )
    ]
    for name, entry in manifest["formats"].items():
        if name not in formats:
            raise CorruptError(f"{folder / FILE} has no answers for '{name}'.", "Build the bundle again.")
        runtime = opener(entry["runtime"], folder / entry["path"], threads=threads)
        try:
            found += _held(runtime, formats[name], name, emit)
        finally:
            runtime.close()
    for gate in found:
        emit(gate)
    return found


def _held(runtime: Runtime, golden: Golden, name: str, emit: Emit) -> list[GateResult]:
    texts = golden["texts"]
    other_ids = [text["text"] for text in texts if runtime.encode(text["text"]) != text["ids"]]
    other_prompts, other_answers = [], []
    for done, answer in enumerate(golden["answers"], 1):
        try:
            rendered = runtime.chat_template.render(answer["messages"], add_generation_prompt=True)
            prompt = prompt_ids(runtime, answer)
        except ConfigError as error:
            rendered, prompt = error.message, runtime.encode(answer["rendered"])
        if rendered != answer["rendered"] or prompt != answer.get("prompt", prompt):
            other_prompts.append(rendered)
        ids = list(runtime.generate(prompt, golden["max_tokens"]))
        if ids != answer["ids"]:
            other_answers.append(f"{answer['text']!r} is now {runtime.decode(ids)!r}")
        emit(Progress(f"verify.{name}", done, len(golden["answers"]), "answers"))
    return [
        _gate(f"{name}.golden_tokens", len(texts), other_ids, "texts"),
        _gate(f"{name}.golden_template", len(golden["answers"]), other_prompts, "prompts"),
        _gate(f"{name}.golden_answers", len(golden["answers"]), other_answers, "answers"),
    ]


def _gate(name: str, total: int, different: Sequence[str], unit: str) -> GateResult:
    detail = (
        f"{len(different)} of {total} {unit} differ, the first: {different[0][:160]!r}"
        if different
        else f"{total} {unit} compared"
    )
    return GateResult(name, 1 - len(different) / max(total, 1), 1.0, not different, detail, "verify")
