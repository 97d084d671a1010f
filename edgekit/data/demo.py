"""The demo data set: a field technician's request becomes one JSON command, or `out_of_scope`.

Sentences are expanded from the hand-written patterns in `demo_intents.toml` by a seeded generator. Each pattern
belongs to one split, and so does each combination of slot values, by its hash, so no wording and no values of a test row
occur in training. Only `Random.random()` is used, whose values are the same in every version and on every platform.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from edgekit.base.artifacts import write_json, written_whole
from edgekit.base.errors import ConfigError

SYSTEM = "Answer with one JSON command."
OUT_OF_SCOPE = "out_of_scope"
OUT_OF_SCOPE_SHARE = 0.09
HOMES = {"train": (0, 166), "validation": (166, 192), "test": (192, 256)}
"""The range of the first byte of a slot combination's SHA-256 that belongs to each split."""
GIVE_UP = 2000
"""Consecutive draws without a new sentence after which the patterns count as exhausted."""

T = TypeVar("T")

_CHOICE = re.compile(r"\(([^()]*)\)")
_SLOT = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"\{\w+\}|[A-Za-z]{6,}")


@cache
def patterns() -> dict[str, Any]:
    """The tables of `demo_intents.toml`: `slots`, `noise` and `intents`."""
    return tomllib.loads(resources.files("edgekit.data").joinpath("demo_intents.toml").read_text("utf-8"))


def generate(
    train: int = 800, validation: int = 150, test: int = 300, seed: int = 7
) -> dict[str, list[dict[str, Any]]]:
    """Rows of `id`, `messages` and `label` (the intent) for each split; the same for the same arguments.

    A split's rows depend on its own count and the seed alone: a larger train set keeps the test set.
    Raises `ConfigError` when a split asks for more different sentences than the patterns give.
    """
    counts = {"train": train, "validation": validation, "test": test}
    return {split: _split_rows(split, count, seed) for split, count in counts.items()}


def card(train: int = 800, validation: int = 150, test: int = 300, seed: int = 7) -> dict[str, Any]:
    """The dataset card of `generate` with the same arguments."""
    return {
        "owner": "the edgekit authors",
        "source": "edgekit.data.demo, from the patterns in demo_intents.toml",
        "licence": "Apache-2.0",
        "collected": "generated",
        "pii": "none: invented names",
        "rows": {"train": train, "validation": validation, "test": test},
        "seed": seed,
    }


def write(
    folder: Path,
    train: int = 800,
    validation: int = 150,
    test: int = 300,
    seed: int = 7,
    *,
    force: bool = False,
) -> Path:
    """Write `train.jsonl`, `validation.jsonl`, `test.jsonl` and `card.json` to `folder`, whole or not at all.

    Raises `ConfigError` when `folder` exists and `force` is off.
    """
    splits = generate(train, validation, test, seed)
    with written_whole(folder, force=force) as staging:
        staging.mkdir()
        for split, rows in splits.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (staging / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
        write_json(staging / "card.json", card(train, validation, test, seed))
    return folder


def _split_rows(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    intents = patterns()["intents"]
    out_of_scope = round(count * OUT_OF_SCOPE_SHARE)
    share, rest = divmod(count - out_of_scope, len(intents) - 1)
    rows = []
    for index, intent in enumerate(intents):
        size = out_of_scope if intent == OUT_OF_SCOPE else share + (index < rest)
        rows += _intent_rows(split, intent, size, Random(f"{seed}/{split}/{intent}"))
    return [
        {"id": f"{split}-{number:04d}", "messages": messages, "label": intent}
        for number, (intent, messages) in enumerate(_shuffled(Random(f"{seed}/{split}"), rows), start=1)
    ]


def _intent_rows(split: str, intent: str, count: int, rng: Random) -> list[tuple[str, list[dict[str, str]]]]:
    """`count` rows with different sentences, the intent's patterns in turn."""
    table = patterns()["intents"][intent]
    rows: list[tuple[str, list[dict[str, str]]]] = []
    seen: set[str] = set()
    misses = 0
    for pattern in cycle(_shuffled(rng, table[split])):
        if len(rows) == count:
            break
        values = _values(rng, _SLOT.findall(pattern), table["keys"], split)
        question = _fill(_noisy(rng, _expand(rng, pattern)), values)
        wording = re.sub(r"\W+", " ", question.lower()).strip()
        if wording in seen:
            misses += 1
            if misses > GIVE_UP:
                raise ConfigError(
                    f"The demo patterns give only {len(rows)} of {count} different {split} sentences for {intent}.",
                    "Ask for fewer rows, or add patterns to demo_intents.toml.",
                )
            continue
        misses = 0
        seen.add(wording)
        answer = {"intent": intent} | {key: values[key] for key in table["keys"]}
        rows.append((intent, _messages(question, answer)))
    return rows


def _messages(question: str, answer: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": question},
        {"role": "assistant", "content": json.dumps(answer, ensure_ascii=False, separators=(",", ":"))},
    ]


def _values(rng: Random, names: Sequence[str], keys: Sequence[str], split: str) -> dict[str, str]:
    """A value for each slot, drawn again until the combination that is answered belongs to `split`."""
    first, end = HOMES[split]
    while True:
        values = {name: _value(rng, name) for name in names}
        combination = "|".join(values[key] for key in keys)
        if not keys or first <= hashlib.sha256(combination.encode()).digest()[0] < end:
            return values


def _fill(text: str, values: dict[str, str]) -> str:
    return _SLOT.sub(lambda slot: values[slot[1]], text)


def _value(rng: Random, name: str) -> str:
    return _SLOT.sub(lambda slot: _value(rng, slot[1]), _expand(rng, patterns()["slots"][name]))


def _expand(rng: Random, pattern: str) -> str:
    """`pattern` with one alternative taken for each choice, innermost first."""
    while choice := _CHOICE.search(pattern):
        pattern = pattern[: choice.start()] + _pick(rng, choice[1].split("|")) + pattern[choice.end() :]
    return pattern


def _noisy(rng: Random, sentence: str) -> str:
    """`sentence` as people type it: politely, in a hurry, with a typo; its slots are still in braces and stay whole."""
    noise = patterns()["noise"]
    end = sentence[-1] if sentence[-1] in ".?" else ""
    text = sentence.removesuffix(end)
    if not end:
        frames = noise["request_with_clause" if "," in text else "request"]
        request = _pick(rng, frames) if rng.random() < 0.45 else "*"
        end = "?" if request.endswith("?") else "."
        text = request.removesuffix("?").replace("*", text)
    if rng.random() < 0.12:
        text = _typo(rng, text)
    if rng.random() < 0.12:
        text = f"{_pick(rng, noise['greeting'])}, {text}"
    thanks = f"{end} {_pick(rng, noise['thanks']).capitalize()}!" if rng.random() < 0.1 else ""
    style = rng.random()
    if style < 0.3:
        return (text + thanks).lower()
    return text[0].upper() + text[1:] + (thanks or (end if style > 0.45 else ""))


def _typo(rng: Random, text: str) -> str:
    """One word of six letters or more with two inner letters swapped, one dropped or one doubled."""
    words = [word for word in _WORD.finditer(text) if not word[0].startswith("{")]
    if not words:
        return text
    found = _pick(rng, words)
    word = found[0]
    at = 1 + int(rng.random() * (len(word) - 3))
    wrong = _pick(
        rng,
        [
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        ],
    )
    if wrong.lower() in _vocabulary():  # a typo must not make another word of the task
        return text
    return text[: found.start()] + wrong + text[found.end() :]


@cache
def _vocabulary() -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]+", json.dumps(patterns()).lower()))


def _pick(rng: Random, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _shuffled(rng: Random, items: Sequence[T]) -> list[T]:
    return sorted(items, key=lambda _: rng.random())
