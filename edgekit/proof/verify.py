"""Checks of a file from any source against the model it claims to be; `build` runs the same on its own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base.artifacts import digest_of
from edgekit.base.cache import Cache
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.base.events import Alert, Emit, GateResult
from edgekit.containers import gguf_split
from edgekit.containers.gguf import is_gguf
from edgekit.containers.gguf_content import check_gguf
from edgekit.containers.reader import HINT
from edgekit.data.rows import Row, contents_of
from edgekit.device.loaded import RUNTIME_OF
from edgekit.models import source as model
from edgekit.models import tokenizer_files
from edgekit.models.chat import ChatTemplate
from edgekit.models.folder_check import check_folder, check_weights
from edgekit.models.onnx_folder import check_onnx_folder
from edgekit.proof import texts
from edgekit.proof.facts import ReferenceFacts
from edgekit.proof.held_out import HeldOut, capture_continued, capture_own
from edgekit.proof.prove import Expected, Subject, prove
from edgekit.proof.source import bring_in, tell_unused_tokens
from edgekit.targets.target import Budget

FORMATS = {**RUNTIME_OF, "folder": "torch"}
PROMPTS, MAX_TOKENS = 32, 48
QUICK_PROMPTS, QUICK_MAX_TOKENS = (
    28,
    24,
)  # fewer than 25 answers cannot show a stop agreement of 0.95: proof/gates.py


NO_CHAT = (
    "The model has no chat template, so the checks of the template and of conversations are left out. Token ids, weights, "
    "next-token distributions on plain text and the model's own continuations of it are checked."
)
NO_CHAT_HINT = "For a model that answers messages, give the instruction-tuned one as --reference."


def subject_of(path: Path) -> Subject:
    """The format of the file or folder `path`, recognised by its content and its files.

    Raises `ConfigError` for another kind, `CorruptError` for a .gguf file that is not GGUF, and as `check_weights` for a folder.
    """
    if not path.exists():
        raise ConfigError(f"There is no file {path}.", "Check the path.")
    if path.is_file():
        if is_gguf(path):
            return Subject(path, "gguf", FORMATS["gguf"])
        if path.suffix == ".gguf":
            raise CorruptError(f"{path} is not a GGUF file.", HINT)
    for file, format in {"genai_config.json": "onnx", "config.json": "folder"}.items():
        if (path / file).is_file():
            if format == "folder":
                check_weights(path)
            return Subject(path, format, FORMATS[format])
    raise ConfigError(
        f"{path} is not a .gguf file, an onnxruntime-genai folder or a Hugging Face folder. Nothing was checked.",
        "Give the folder of the model; of a bundle, its model.gguf or its onnx folder.",
    )


def check_contents(subject: Subject, emit: Emit) -> None:
    """Raise `CorruptError` when the parts of a file or folder do not fit together; no runtime opens it.

    Chat templates are rendered here, so that an endless one is found before the reference is run. Tokens without an
    embedding that the tokenizer never produces cause a warning.
    """
    if subject.format == "gguf":
        template = check_gguf(subject.path).metadata.get("tokenizer.chat_template")
        tokenizer_files.printed(ChatTemplate(template) if isinstance(template, str) else None)
    else:
        {"onnx": check_onnx_folder, "folder": check_folder}[subject.format](subject.path)
        tell_unused_tokens(subject.path, emit)


def verify_file(
    path: Path,
    reference: model.Source,
    rows: Sequence[Row],
    budget: Budget,
    cache: Cache,
    *,
    quick: bool = False,
    threads: int = 2,
) -> list[GateResult]:
    """Every gate of the file at `path`, compared with `reference`, whose own answers are kept in `cache`.

    `rows` are held-out conversations of its task; their prompts are used in addition to the general ones. The parts of a
    GGUF model are joined to one file in the cache meanwhile. Raises `CorruptError` for a file that is damaged or that its
    runtime cannot load.
    """
    with gguf_split.whole(path, cache.root) as file:
        subject = subject_of(file)
        check_contents(subject, cache.emit)  # before any runtime reads it
        return _verify(subject, reference, rows, budget, cache, quick=quick, threads=threads)


def _verify(
    subject: Subject,
    reference: model.Source,
    rows: Sequence[Row],
    budget: Budget,
    cache: Cache,
    *,
    quick: bool,
    threads: int,
) -> list[GateResult]:
    from edgekit.models.tokenizer import ModelTokenizer

    folder = bring_in(cache, reference)
    count, max_tokens = (QUICK_PROMPTS, QUICK_MAX_TOKENS) if quick else (PROMPTS, MAX_TOKENS)
    prompts: list[Any] = [row.messages[:-1] for row in rows[:count]]
    general = texts.PROMPTS[: count - len(prompts)] if quick else texts.PROMPTS[:count]
    prompts += [[{"role": "user", "content": prompt}] for prompt in general]
    read = texts.TEXTS[:1] if quick else texts.TEXTS
    tokenizer = ModelTokenizer(folder.path)

    if tokenizer.template is None:
        cache.emit(Alert("warning", NO_CHAT, NO_CHAT_HINT))
        prompts = []

    def capture(out: Path, work: Path) -> None:
        runtime = registry.load("runtimes", "torch")(folder.path, threads=threads)
        try:
            if tokenizer.template is None:
                own = capture_continued(runtime, tokenizer, count, read, max_tokens, cache.emit)
            else:
                own = capture_own(runtime, tokenizer, prompts, read, max_tokens, cache.emit)
        finally:
            runtime.close()
        out.mkdir()
        own.save(out)

    inputs = {
        "model": folder.digest,
        "passages": digest_of([[dict(message) for message in prompt] for prompt in prompts]),
        "texts": read,
        **({} if tokenizer.template else {"continued": count}),
        "max_tokens": max_tokens,
        "threads": threads,
    }
    modules = ["edgekit.proof.held_out", "edgekit.models.tokenizer", registry.module_of("runtimes", "torch")]
    held_out = HeldOut.load(cache.stage("reference", inputs, capture, modules).path)
    facts = ReferenceFacts.of(
        tokenizer,
        [row.answer for row in rows[:count]],
        [row.messages[:-1] for row in rows[:count]],
        contents_of(row.messages for row in rows),
    )
    expected = Expected(facts, held_out, budget)
    return prove(subject, folder.path, expected, cache.emit, threads=threads)
