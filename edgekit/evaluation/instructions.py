"""Instruction following: prompts whose instructions a program can check, by the checkers of lm-evaluation-harness.

IFEval (Zhou et al. 2023, arXiv 2311.07911). The loose figures also accept an answer without its first or last line, or without
asterisks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.base.errors import ConfigError, MissingPartError
from edgekit.base.events import Emit
from edgekit.base.parts import install_line
from edgekit.data.prompts import read_prompts
from edgekit.evaluation.answering import Free, Model, answer_freely
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.samples import write_log
from edgekit.evaluation.statistics import clustered_share, wilson

SCHEMA = "edgekit.instructions/1"
STAGE = "eval.instructions"
SOURCE = "IFEval's input_data.jsonl (github.com/google-research/google-research, instruction_following_eval)"
COLUMNS = ("key", "prompt", "instruction_id_list", "kwargs")
MODES = ("strict", "loose")
Check = Callable[[Mapping[str, Any], list[str]], dict[str, Any]]


def read(path: Path) -> list[Mapping[str, Any]]:
    """The prompts of IFEval's file. Raises `ConfigError` for another file."""
    records = read_prompts(path, COLUMNS, SOURCE)
    for record in records:
        ids, values = record["instruction_id_list"], record["kwargs"]
        if not (isinstance(ids, list) and isinstance(values, list) and len(ids) == len(values)):
            raise ConfigError(
                f"The prompt {record['key']} of {path} has no arguments for each of its instructions.",
                f"Give {SOURCE}.",
            )
    return records


def checker() -> Check:
    """The checkers of lm-evaluation-harness. Raises `MissingPartError` when they, or the data that they need, are not installed.

    They would fetch that data by themselves, so it must be there before they are imported.
    """
    try:
        import nltk
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise MissingPartError(
            "The checkers of instructions need NLTK's data 'punkt_tab', which is not there.",
            "Fetch it: python -m nltk.downloader punkt_tab",
        ) from error
    try:
        import langdetect
        from lm_eval.tasks.ifeval.utils import process_results
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    langdetect.DetectorFactory.seed = 0  # it draws, and the same answer must be judged alike
    check: Check = process_results
    return check


def _missing(error: ModuleNotFoundError) -> MissingPartError:
    return MissingPartError(
        f"The checkers of instructions need the package '{error.name}', which is not installed.",
        install_line("lm_eval"),
    )


def evaluate(
    model: Model,
    prompts: Sequence[Mapping[str, Any]],
    check: Check,
    free: Free,
    *,
    log: Path,
    kept: Kept,
    emit: Emit,
) -> dict[str, Any]:
    """Ask every prompt, and check its instructions. Returns the document of schema `edgekit.instructions/1`.

    `log` gets one JSON object for each prompt, completely or not at all; `correct` means that all instructions are followed
    strictly. Answers in `kept` are not asked again, and it gets the new ones.
    """
    about = [
        {"id": str(one["key"]), "question": one["prompt"], "instructions": one["instruction_id_list"]}
        for one in prompts
    ]
    samples = answer_freely(model, about, free, kept, emit, STAGE)
    for sample, prompt in zip(samples, prompts, strict=True):
        sample |= _checked(check, prompt, sample["answer"])
        sample["correct"] = all(sample["strict"])
    write_log(log, samples)
    return {"schema": SCHEMA, **figures(samples)}


def _checked(check: Check, prompt: Mapping[str, Any], answer: str) -> dict[str, list[bool]]:
    """Whether each instruction is followed, strictly and loosely. A checker may draw arguments, so its seed is the prompt's."""
    kept = random.getstate()
    random.seed(str(prompt["key"]))
    try:
        found = check(prompt, [answer])
    finally:
        random.setstate(kept)
    return {mode: [bool(one) for one in found[f"inst_level_{mode}_acc"]] for mode in MODES}


def figures(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The four accuracies: of prompts whose instructions are all followed, and of instructions, strict and loose.

    The interval over instructions regards those of one prompt as a cluster. `kinds` has the instructions by their group.
    """
    found: dict[str, Any] = {"n": len(samples), "instructions": sum(len(one["strict"]) for one in samples)}
    for mode in MODES:
        whole = sum(all(one[mode]) for one in samples)
        found[f"prompt_level_{mode}_acc"] = whole / len(samples)
        found[f"prompt_level_{mode}_95"] = list(wilson(whole, len(samples)))
        hits = [sum(one[mode]) for one in samples]
        sizes = [len(one[mode]) for one in samples]
        found[f"inst_level_{mode}_acc"] = sum(hits) / sum(sizes)
        found[f"inst_level_{mode}_95"] = list(clustered_share(hits, sizes))
    kinds: dict[str, list[tuple[bool, bool]]] = {}
    for one in samples:
        for id_, strict, loose in zip(one["instructions"], one["strict"], one["loose"], strict=True):
            kinds.setdefault(id_.partition(":")[0], []).append((strict, loose))
    found["kinds"] = [
        {
            "name": kind,
            "n": len(answers),
            "strict": sum(strict for strict, _ in answers) / len(answers),
            "strict_95": list(wilson(sum(strict for strict, _ in answers), len(answers))),
            "loose": sum(loose for _, loose in answers) / len(answers),
        }
        for kind, answers in sorted(kinds.items())
    ]
    return found
