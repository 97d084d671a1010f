"""The proof that a Hugging Face folder made from a model's source is the same model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgekit import registry
from edgekit.base.cache import Cache, StageOutput
from edgekit.base.errors import StageError
from edgekit.base.events import Alert, Emit, GateResult
from edgekit.containers import gguf_split
from edgekit.device.isolated import open_isolated
from edgekit.evaluation.statistics import ONE_SIDED_95, bootstrap_mean
from edgekit.models import gguf_source, given_template, tokenizer_files
from edgekit.models.source import Source, digest, fetch
from edgekit.models.source import bring_in as write_folder
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.proof import text_path
from edgekit.proof.drift import kl_divergence
from edgekit.proof.facts import ReferenceFacts
from edgekit.proof.held_out import TEXT_TOKENS
from edgekit.proof.texts import PROMPTS, TEXTS
from edgekit.registry import Runtime

CONVERSATIONS = 8
KLD_LIMIT_NATS = (
    0.05  # llama.cpp rounds activations to 8 bits (0.005 nats); a swapped tensor costs whole nats
)


def bring_in(cache: Cache, source: Source) -> StageOutput:
    """The source model as a Hugging Face folder that was proven to be the same model."""
    source = fetch(source, cache.emit)

    def run(out: Path, work: Path) -> None:
        if source.kind == "gguf" and source.path is not None:
            with gguf_split.whole(source.path, work) as file:
                write_folder(replace(source, chat_template=""), out, file)
                prove(file, out, cache.emit)  # before it gets a template that the file does not have
            if source.chat_template:
                given_template.give(out, source.chat_template)
        else:
            write_folder(source, out)

    inputs = {
        "source": digest(source),
        "kind": source.kind,
        "name": source.name,
        "licence": source.licence,
        "commit": source.commit,
        **({"chat_template": source.chat_template} if source.chat_template else {}),
    }
    modules = ["edgekit.models.source"]
    if source.chat_template:
        modules.append("edgekit.models.given_template")
    if source.kind == "gguf":
        modules += [__name__, *(registry.module_of("runtimes", name) for name in ("llama.cpp", "torch"))]
    folder = cache.stage("model", inputs, run, modules)
    tell_unused_tokens(folder.path, cache.emit)
    _tell_templates(source, folder.path, cache.emit)
    return folder


def _tell_templates(source: Source, folder: Path, emit: Emit) -> None:
    """Which of several chat templates is used, and what a given one made of the vocabulary."""
    if source.chat_template == given_template.CHATML:
        emit(Alert("info", given_template.told(ModelTokenizer(folder))))
    elif not source.chat_template and source.path is not None and source.path.is_dir():
        names = tokenizer_files.template_names(source.path)
        if len(names) > 1:
            emit(
                Alert(
                    "warning",
                    f"The model has {len(names)} chat templates: {', '.join(names)}. edgekit uses {tokenizer_files.DEFAULT}.",
                    "Give another as a file: --chat-template FILE.",
                )
            )


def tell_unused_tokens(folder: Path, emit: Emit) -> None:
    """A warning on tokens that the folder's model has no embedding for."""
    if unused := tokenizer_files.warning(folder):
        emit(
            Alert(
                "warning", unused, "edgekit reads these characters as text; other software may fail on them."
            )
        )


def _distance(source: Runtime, reference: Runtime, tokenizer: ModelTokenizer) -> GateResult:
    """The gate on the mean divergence of the folder's next-token distributions from the file's.

    A plain text begins with BOS where the tokenizer adds it; a template prints it itself.
    """
    template, prompts = tokenizer.template, PROMPTS[:CONVERSATIONS]
    asked = [
        template.render([{"role": "user", "content": text}], add_generation_prompt=True) if template else ""
        for text in prompts
    ]
    plain = (*TEXTS, *(() if template else prompts))
    sequences = [[*tokenizer.begin_ids, *reference.encode(text)[:TEXT_TOKENS]] for text in plain]
    sequences += [reference.encode(text)[:TEXT_TOKENS] for text in asked if text]
    klds = [kl_divergence(source.logits(ids), reference.logits(ids)) for ids in sequences]
    owner = np.repeat(np.arange(len(klds)), [len(part) for part in klds])
    every = np.concatenate(klds)
    mean, bounds = float(every.mean()), bootstrap_mean(every, owner, ONE_SIDED_95)
    most = 2 * KLD_LIMIT_NATS  # as for every mean divergence: `edgekit.proof.gates`
    detail = f"{len(every)} positions of {len(TEXTS)} texts and {CONVERSATIONS} prompts"
    if mean <= KLD_LIMIT_NATS and bounds[1] > most:
        detail += f"; the upper bound is {bounds[1]:.3g}, above {most:g}"
    passed = mean <= KLD_LIMIT_NATS and bounds[1] <= most
    return GateResult(
        "source.mean_kld_nats", mean, KLD_LIMIT_NATS, passed, detail, "model", *bounds, n=len(every)
    )


def prove(path: Path, folder: Path, emit: Emit) -> None:
    """Compare the folder with the file as llama.cpp reads it: token ids, chat template, next-token distributions.

    The distributions are compared after each token of three plain texts and eight prompts, several hundred in total. The
    file is opened in a child process. Raises `StageError` at the first difference, and `CorruptError` when the file
    crashes the process.
    """
    source = open_isolated("llama.cpp", path)
    reference = registry.load("runtimes", "torch")(folder)
    try:
        tokenizer = ModelTokenizer(folder)
        identical, _ = text_path.identity(source, ReferenceFacts.of(tokenizer), "source", "model")
        _judge(path, identical, emit)
        _judge(path, [_distance(source, reference, tokenizer)], emit)
    finally:
        reference.close()
        source.close()


def _judge(path: Path, found: Sequence[GateResult], emit: Emit) -> None:
    """Tell each gate; raise `StageError` at the first that failed."""
    for gate in found:
        emit(gate)
        if not gate.passed:
            raise StageError(
                f"The model read from {path.name} differs from the file: {gate.name}, {gate.detail}. Nothing was built.",
                gguf_source.HINT,
            )
