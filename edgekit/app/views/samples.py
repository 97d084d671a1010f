"""The answers of every variant to the same prompts, side by side, and what changed in them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ValidationError

from edgekit.app.views.bundles import read_bounded
from edgekit.app.views.differences import Difference
from edgekit.base.command import Command
from edgekit.base.errors import CorruptError
from edgekit.base.texts import plain
from edgekit.evaluation.compare import change

BEFORE = "tuned"  # what the files are held against
UNHELD = ("base", "base_few_shot", BEFORE)
MOST_VARIANTS = 12
MOST_WORDS = 1500  # of one answer that are compared word by word
LONGEST = 20_000  # signs of one text that are kept
Kind = Literal["same", "changed", "better", "worse"]
KINDS: tuple[Kind, ...] = ("same", "changed", "better", "worse")


@dataclass(frozen=True)
class Answer:
    """What one variant answered."""

    text: str
    correct: bool


@dataclass(frozen=True)
class Sample:
    """One prompt with the answers of all variants that were asked it."""

    id: str
    label: str
    asked: str
    expected: str
    answers: Mapping[str, Answer]

    def kind(self, variant: str) -> Kind | None:
        """How a variant's answer differs from the tuned model's; None where one of the two is not there."""
        before, after = self.answers.get(BEFORE), self.answers.get(variant)
        if before is None or after is None:
            return None
        if before.text == after.text:
            return "same"
        if before.correct == after.correct:
            return "changed"
        return "better" if after.correct else "worse"

    @property
    def kinds(self) -> dict[str, Kind]:
        """The kind for each variant that is held against the tuned model."""
        held = [name for name in self.answers if name not in UNHELD]
        return {name: kind for name in held if (kind := self.kind(name)) is not None}


@dataclass(frozen=True)
class Samples:
    """All samples of a bundle, in the order of its logs; `faults` says what could not be read."""

    variants: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def held(self) -> list[str]:
        """The variants that are held against the tuned model."""
        return [name for name in self.variants if name not in UNHELD]

    def counts(self, variant: str) -> dict[str, int]:
        """How many answers of a variant are the same, changed (as right or wrong as before), better and worse."""
        kinds = [sample.kind(variant) for sample in self.samples]
        return {kind: kinds.count(kind) for kind in KINDS}

    def shown(self, *, all_: bool = False, filter_: str = "") -> list[Sample]:
        """Those in which a file's answer differs from the tuned model's, or `all_`, that hold every word of `filter_`."""
        words = filter_.casefold().split()
        return [
            sample
            for sample in self.samples
            if (all_ or set(sample.kinds.values()) - {"same"})
            and (not words or all(word in _haystack(sample) for word in words))
        ]


def _haystack(sample: Sample) -> str:
    texts = [sample.id, sample.label, sample.asked, sample.expected, *sample.kinds.values()]
    return "\n".join([*texts, *(answer.text for answer in sample.answers.values())]).casefold()


Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else plain(value)[:LONGEST])]


class Line(BaseModel):
    """One line of a log."""

    id: Text
    label: Text = ""
    prompt: Text = ""
    expected: Text = ""
    answer: Text
    correct: Annotated[bool, BeforeValidator(lambda value: value is True)]


def read(bundle: Path) -> Samples:
    """The samples of a bundle; what is damaged, too large or missing is left out and told in `faults`."""
    folder, faults = bundle / "samples", []
    logs: dict[str, dict[str, Line]] = {}
    try:
        found = [path for path in folder.iterdir() if path.suffix == ".jsonl"]
    except OSError:
        return Samples(faults=(f"{folder} is not there: `edgekit build` writes the samples of a bundle.",))
    # the tuned model, the files, the base last
    names = sorted(found, key=lambda path: (path.stem == "base", path.stem != BEFORE, path.stem))
    for path in names[:MOST_VARIANTS]:
        try:
            logs[plain(path.stem)], broken = _read_log(read_bounded(path, bundle))
        except CorruptError as error:
            faults.append(f"{error.message} {error.hint}")
            continue
        if broken:
            faults.append(
                f"{broken} lines of {path} are no samples and are left out; edgekit verify {bundle}"
            )
    if not logs:
        return Samples(faults=(*faults, f"There are no samples in {folder}; `edgekit build` writes them."))
    if BEFORE not in logs:
        faults.append(f"{folder / (BEFORE + '.jsonl')} is not there, so nothing can be held against it.")
    rows: dict[str, Line] = {}
    for log in logs.values():
        rows.update({id_: row for id_, row in log.items() if id_ not in rows})
    start, end = shared([row.prompt for row in rows.values()])
    samples = [
        Sample(
            id=id_,
            label=row.label,
            asked=row.prompt[start : len(row.prompt) - end].strip() or row.prompt,
            expected=row.expected,
            answers={
                name: Answer(log[id_].answer, log[id_].correct) for name, log in logs.items() if id_ in log
            },
        )
        for id_, row in rows.items()
    ]
    return Samples(tuple(logs), tuple(samples), tuple(faults))


def _read_log(whole: str) -> tuple[dict[str, Line], int]:
    """The samples of one log by their ids, and how many lines are none."""
    log, broken = {}, 0
    for text in filter(str.strip, whole.split("\n")):
        try:
            line = Line.model_validate_json(text)
            log[line.id] = line
        except ValidationError:
            broken += 1
    return log, broken


def shared(prompts: Sequence[str]) -> tuple[int, int]:
    """Lengths of what all prompts begin and end with: the template and the system message around the user's text.

    Cut back to the template's own signs, as the users' texts may begin or end alike too.
    """
    if len(set(prompts)) < 2:
        return 0, 0
    before = os.path.commonprefix(list(prompts))
    rest = [prompt[len(before) :] for prompt in prompts]
    after = os.path.commonprefix([text[::-1] for text in rest])[::-1]
    start = max(before.rfind(sign) for sign in "\n>]") + 1
    found = [place for sign in "\n<[" if (place := after.find(sign)) >= 0]
    return start, len(after) - min(found, default=len(after))


# What changed

Piece = tuple[Literal["same", "gone", "new"], str]


def pieces(before: str, after: str) -> list[Piece]:
    """`after` in pieces: what was in `before` too, what is gone from it, and what is new, by words."""
    old, new = _words(before), _words(after)
    if max(len(old), len(new)) > MOST_WORDS:  # the time of a comparison goes with the product of the lengths
        old, new = [before], [after]
    found: list[Piece] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            found.append(("same", "".join(new[c:d])))
        else:
            found += [("gone", "".join(old[a:b])), ("new", "".join(new[c:d]))]
    return [piece for piece in found if piece[1]]


SIGNS = {"same": ("", ""), "gone": ("[-", "-]"), "new": ("{+", "+}")}


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def compare_command(bundle: Path, first: str, second: str) -> Command:
    """The command that says which answers changed from one variant to another."""
    folder = bundle / "samples"
    return Command(("compare", str(folder / f"{first}.jsonl"), str(folder / f"{second}.jsonl")))


def differences(samples: Samples, first: str, second: str) -> list[Difference]:
    """How often two variants answered alike, and rightly where the other did not."""
    both = [sample for sample in samples.samples if {first, second} <= sample.answers.keys()]
    same = sum(sample.answers[first].text == sample.answers[second].text for sample in both)
    before, after = ({sample.id: sample.answers[name].correct for sample in both} for name in (first, second))
    found = change(before, after)
    chance = f"p {found.mcnemar_p:.2g} by McNemar's test"
    right = (f"{found.right_before} of {found.n}", f"{found.right_after} of {found.n}")
    return [
        Difference("right", *right, f"{same} answers the same"),
        Difference("right here alone", str(len(found.lost)), str(len(found.won)), chance),
    ]


def document(samples: Samples, shown: Sequence[Sample]) -> dict[str, Any]:
    """What `o` exports."""
    return {
        "counts": {name: samples.counts(name) for name in samples.held},
        "samples": [{**asdict(sample), "kinds": sample.kinds} for sample in shown],
    }
