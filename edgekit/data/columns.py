"""The columns of rows: as the person names them (`--columns prompt=text,completion=category`), or guessed from their names.

A row is a list of messages, or a prompt and its answer (`completion`), each with an optional `label` and `id`. Only names
that leave no doubt are guessed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from edgekit.base.errors import ConfigError

PARTS = ("messages", "system", "prompt", "input", "completion", "label", "id")
OPTION = "--columns prompt=COLUMN,completion=COLUMN"
PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
MESSAGES = ("messages", "conversations", "conversation")
PROMPTS = ("prompt", "instruction", "question", "query", "input")
ANSWERS = ("completion", "output", "response", "answer")
INPUTS = ("input", "context")  # text that belongs to an instruction
TEXTS = ("text", "sentence", "sentences", "utterance", "review", "content")
LABELS = ("label", "labels", "category", "class", "intent", "sentiment")
SYSTEMS = ("system", "system_prompt")

_PART = re.compile(rf"(?:^|,)\s*(?=(?:{'|'.join(PARTS)})\s*=)")


@dataclass(frozen=True)
class Columns:
    """The column of each part of a row. `guessed` unless the person named them or they have edgekit's own names."""

    of: Mapping[str, str]
    guessed: bool = False

    def needed(self, names: Iterable[str]) -> list[str]:
        """The columns of a table with `names` that are read; of a column within another one, the outer one."""
        here = set(names)
        return list(
            dict.fromkeys(
                column if column in here else column.partition(".")[0] for column in self.of.values()
            )
        )

    @property
    def text(self) -> str:
        """The columns as `--columns` takes them."""
        return ",".join(f"{part}={self.of[part]}" for part in PARTS if part in self.of)

    def missing(self, names: Iterable[str]) -> list[str]:
        """The columns that are not in `names`."""
        here = set(names)
        wanted = dict.fromkeys(self.of.values())
        return [column for column in wanted if column not in here and column.partition(".")[0] not in here]


def own(names: Iterable[str]) -> Columns | None:
    """The columns of a row in one of edgekit's own three shapes; None for any other row."""
    names = set(names)
    more: dict[str, str] = {part: part for part in ("system", "label", "id") if part in names}
    if "messages" in names:
        return Columns({"messages": "messages", **more})
    if "prompt" in names:
        return Columns({"prompt": "prompt", "completion": "completion", **more})
    if "instruction" in names:
        extra = {"input": "input"} if "input" in names else {}
        return Columns({"prompt": "instruction", **extra, "completion": "output", **more})
    return None


def named(text: str) -> Columns | None:
    """The columns that a person names; None for an empty text. Raises `ConfigError` for what is not understood."""
    if not text.strip():
        return None
    of: dict[str, str] = {}
    faults = []
    for pair in filter(None, _PART.split(text)):
        part, _, column = (piece.strip() for piece in pair.partition("="))
        if part not in PARTS:
            near, first = difflib.get_close_matches(part, PARTS, 1), column.partition(",")[0]
            meant = f"'{near[0]}'" if near else f"{first}={part}" if first in PARTS else ""
            faults.append(
                f"'{pair.strip()}': there is no part '{part}'" + (f"; did you mean {meant}?" if meant else "")
            )
        elif not column:
            faults.append(f"'{pair.strip()}' names no column")
        elif part in of:
            faults.append(f"'{part}' is named twice")
        elif re.search(rf"[;\s]\s*(?:{'|'.join(PARTS)})\s*=", column):
            faults.append(f"'{pair.strip()}': separate the parts with commas")
        of[part] = column
    whole = {"messages"} <= of.keys() or {"prompt", "completion"} <= of.keys()
    if not faults and not whole:
        faults.append("it names neither messages nor both prompt and completion")
    if not faults and "messages" in of and of.keys() & {"prompt", "input", "completion"}:
        faults.append("messages contain the prompt and the answer, so no other column can")
    if faults:
        raise ConfigError(
            f"--columns {text} cannot be used.",
            f"Write PART=COLUMN with the parts {', '.join(PARTS)}: {OPTION}.",
            faults,
        )
    return Columns(of)


def guess(names: Sequence[str]) -> Columns | None:
    """The columns of a table by their names; None where that is not plain."""
    plain: dict[str, str] = {}
    alike: set[str] = set()  # such as Text beside text
    for name in names:
        first = plain.setdefault(re.sub(r"[\s-]+", "_", name.strip().lower()), name)
        alike |= {first} if first != name else set()
    found = _conversation(plain) or _pair(plain) or _labelled(plain)
    if not found or alike & set(found.values()):
        return None
    used = set(found.values())
    for part, known in (("system", SYSTEMS), ("label", ("label",)), ("id", ("id",))):
        here = [plain[name] for name in known if name in plain and plain[name] not in used]
        if here and part not in found:
            found[part] = here[0]
    ours = own(names)
    guessed = ours is None or bool(ours.missing(names)) or set(ours.of.items()) != set(found.items())
    return Columns(found, guessed)


def proposal(names: Sequence[str]) -> str:
    """The option that names the columns of a table with `names`, as far as they can be proposed."""
    lower = {name.lower(): name for name in names}
    prompt, answer = (
        next((lower[name] for name in known if name in lower), "COLUMN")
        for known in ((*PROMPTS, *TEXTS), (*ANSWERS, *LABELS))
    )
    extra = [lower[name] for name in INPUTS if name in lower and lower[name] != prompt]
    return f"--columns prompt={prompt},completion={answer}" + (f",input={extra[0]}" if extra else "")


def _conversation(plain: Mapping[str, str]) -> dict[str, str]:
    here = [plain[name] for name in MESSAGES if name in plain]
    return {"messages": here[0]} if here else {}


def _pair(plain: Mapping[str, str]) -> dict[str, str]:
    """A prompt and its answer: one of the usual pairs, else the only two columns that can be.

    None is found where a column that may belong to the prompt would be left out. The text that belongs to an instruction is
    `input`, as Alpaca has it, else `context`.
    """
    pairs = [pair for pair in PAIRS if set(pair) <= plain.keys()]
    if not pairs:
        prompts, answers = ([name for name in known if name in plain] for known in (PROMPTS, ANSWERS))
        if "instruction" in prompts:
            prompts = [name for name in prompts if name != "input"]  # which then belongs to the instruction
        pairs = [(prompts[0], answers[0])] if len(prompts) == len(answers) == 1 else []
    if not pairs:
        return {}
    prompt, answer = pairs[0]
    found = {"prompt": plain[prompt], "completion": plain[answer]}
    extra = [plain[name] for name in INPUTS if name in plain and name != prompt]
    if not extra:
        return found
    return {**found, "input": extra[0]} if prompt == "instruction" else {}


def _labelled(plain: Mapping[str, str]) -> dict[str, str]:
    """One text and one label: the label is the answer, from a closed set."""
    texts, labels = ([plain[name] for name in known if name in plain] for known in (TEXTS, LABELS))
    if len(texts) != 1 or len(labels) != 1 or plain.keys() & {*PROMPTS, *ANSWERS}:
        return {}
    return {"prompt": texts[0], "completion": labels[0], "label": labels[0]}
