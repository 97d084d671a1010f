"""A build put together step by step: what was chosen, what each check says of it, what it needs, and its command."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgekit import registry
from edgekit.base.command import Command, Outcome
from edgekit.base.texts import one_line
from edgekit.build.defaults import DEFAULT_CACHE, DEFAULT_DATA, DEFAULT_MODEL, DEFAULT_TARGET, ROBUST_TIME
from edgekit.build.request import Order
from edgekit.data import hub as hub_data
from edgekit.data.dataset import DataOptions
from edgekit.data.kinds import SUFFIXES
from edgekit.models.given_template import CHATML
from edgekit.models.source import BUILT_IN, HUB_ID, Source
from edgekit.targets.host import Host
from edgekit.targets.target import Budget, Device


@dataclass(frozen=True)
class Question:
    """A step: what is asked and the help below it; `names` and files that end with `suffix` are suggested."""

    text: str
    help: str
    names: tuple[str, ...] = ()
    suffix: str | tuple[str, ...] = ""


QUESTIONS = {
    "model": Question(
        "Which model do you start from?",
        f"A Hugging Face folder, a .gguf file, a hub id (org/name), or {', '.join(BUILT_IN)}, which is here.",
        tuple(BUILT_IN),
        ".gguf",
    ),
    "target": Question(
        "Which device is it for?",
        "It sets the size of the file. Choose a built-in target or your own TOML file.",
        suffix=".toml",
    ),
    "data": Question(
        "Which data is it tuned on?",
        "A CSV, TSV, JSONL, JSON, Parquet or Arrow file, a folder of them, a hub data set (org/name), or demo. "
        "Below it the columns (press tab), such as prompt=text,completion=label; empty to guess them.",
        ("demo",),
        SUFFIXES,
    ),
    "budget": Question(
        "Which limits must the file meet?",
        "A file over a limit fails its gate. The target's limits suit most cases.",
    ),
    "review": Question("Is this what you want to build?", "Nothing is written until you press b."),
}
STEPS = tuple(QUESTIONS)
TARGET_COLUMNS = ("target", "runs here", "bits per weight", "MiB of memory", "what it is for")
DOWNLOADED = "Its plan downloads the config and the tokenizer (some MiB), and no weights."
BUNDLES = Path("bundles")  # where `edgekit build` writes without --out
ROBUST = (
    "Robust tuning also prepares the model for typos, other spellings and phrasings, and requests that are out of scope. "
    f"Tuning takes about {ROBUST_TIME:g} times as long."
)
ROUGH = 1.05  # of a limit: sizes are estimated by the type's usual bits per weight, before the file is made


@dataclass(frozen=True)
class Choice:
    """What was chosen so far; the defaults build the demo.

    `columns` and `drop_leaks` say how the data is read. With `offline` only the hub's cache is used. `formats` are the formats to build, if not every one of the target;
    `limits` are the budget's limits that were changed. `robust` turns robust tuning on or off; None leaves it to the target.
    """

    model: str = DEFAULT_MODEL
    target: str = DEFAULT_TARGET
    data: str = DEFAULT_DATA
    columns: str = ""
    drop_leaks: bool = False
    offline: bool = False
    formats: tuple[str, ...] = ()
    chat_template: str = ""
    limits: tuple[tuple[str, str], ...] = ()
    robust: bool | None = None
    out: str = ""
    cache_dir: Path = DEFAULT_CACHE
    bundles: Path = BUNDLES

    @property
    def place(self) -> Path:
        """The folder that is written."""
        if self.out:
            return Path(at_home(self.out))
        target = Path(self.target).name.removesuffix(".toml")
        return self.bundles / f"{Source(self.model, 'hub', None).name}-{target}"

    @property
    def changes(self) -> list[str]:
        """The values of the target that are changed, as `--set` takes them."""
        limits = [f"budget.{key}={value}" for key, value in self.limits]
        return limits + ([] if self.robust is None else [f"tune.robust={str(self.robust).lower()}"])

    @property
    def order(self) -> Order:
        """What is built, as the command line takes it."""
        return Order(
            at_home(self.target),
            at_home(self.model),
            at_home(self.data),
            self.place if self.out or self.bundles != BUNDLES else None,
            self.changes,
            ",".join(self.formats),
            cache_dir=self.cache_dir,
            offline=self.offline,
            reading=DataOptions(self.columns.strip(), drop_leaks=self.drop_leaks),
            chat_template=self.chat_template,
        )

    @property
    def build(self) -> Command:
        """The whole build."""
        return Command(("build", *self.order.arguments))

    @property
    def plan(self) -> Command:
        """What it would do and need. It downloads nothing but the config and the tokenizer of a hub model.

        A hub data set is read from the hub's cache, where `audit` has found it.
        """
        cached_only = self.data_on_hub and not self.model_on_hub and not self.offline
        return Command(("plan", *self.order.arguments, *["--offline"] * cached_only))

    @property
    def audit(self) -> Command:
        """A look at every row; a hub data set is read from the hub's cache."""
        return Command((*self.download.arguments, *["--offline"] * self.data_on_hub))

    @property
    def download(self) -> Command:
        """The same with a download of what is missing in the hub's cache."""
        return Command(("data", "audit", at_home(self.data), *self.order.reading.arguments))

    @property
    def shown(self) -> Command:
        """The target's values."""
        return Command(("targets", "show", at_home(self.target)))

    @property
    def resolved(self) -> Command:
        """Every value of the target with the file it comes from, for people."""
        return Command((*self.shown.arguments, "--resolved"), plain=True)

    @cached_property
    def data_on_hub(self) -> bool:
        """Whether the data is a hub data set. Looked at once, as `model_on_hub`."""
        data = at_home(self.data)
        return not os.path.lexists(data) and hub_data.parse(data) is not None

    @cached_property
    def model_on_hub(self) -> bool:
        """Whether the model is a hub id. Looked at once, as each key press asks."""
        named = HUB_ID.match(self.model) is not None and self.model not in BUILT_IN
        return named and not os.path.lexists(at_home(self.model))


@dataclass(frozen=True)
class Finding:
    """What a check says of a step: CHECKING, OK, WARNING, FAILED, or WAITING for another; and why in words."""

    state: str = "CHECKING"
    lines: tuple[str, ...] = ()
    message: str = ""
    hint: str = ""
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limit:
    """One limit of the budget; `own` when it was changed here."""

    key: str
    words: str
    value: str
    own: bool
    fault: str = ""

    @property
    def short(self) -> str:
        """The first of its words."""
        return self.words.partition(":")[0].partition(". ")[0]


def shipped(machine: Host) -> list[tuple[str, str, str, str, str]]:
    """Every target that comes with edgekit, in the words of `TARGET_COLUMNS`."""
    targets = registry.load("profiles", "targets")
    rows = []
    for target in map(targets.load, targets.names()):
        bits = ", ".join(f"{format} {value:.1f}" for format, value in target.bits_per_weight.items())
        apart = target.device.differs(machine)
        runs_here = f"no: {apart}" if apart else "yes"
        rows.append((target.name, runs_here, bits, f"{target.device.memory_mib:,}", target.summary))
    return rows


def answered(outcome: Outcome | None) -> dict[str, Any] | None:
    """The document of a command that has succeeded."""
    if outcome is None or outcome.code != 0 or not isinstance(outcome.document, dict):
        return None
    return outcome.document


def planned(outcome: Outcome | None) -> dict[str, Any] | None:
    """The plan in what `edgekit plan` printed, also of a build that it refuses."""
    document = outcome.document if outcome else None
    return document if isinstance(document, dict) and "exports" in document else None


def downloads(choice: Choice) -> bool:
    """Whether the plan downloads the config and the tokenizer of a hub model, unless the hub's cache has them."""
    return choice.model_on_hub and not choice.offline


def model_finding(
    choice: Choice, plan: Outcome | None, others: Iterable[Finding] = (), *, typing: bool = False
) -> Finding:
    """Whether the model is there and can be read, once no other step stands in the way of a plan.

    While a person is `typing` the name of a hub model, nothing is downloaded for a plan.
    """
    if not choice.model.strip():
        return Finding("FAILED", message="No model is given.", hint=f"Type {DEFAULT_MODEL} for the demo.")
    if plan is None:
        waits = any(other.state == "FAILED" for other in others) or (typing and downloads(choice))
        state = "WAITING" if waits else "CHECKING"
        if not downloads(choice):
            return Finding(state)
        return Finding(
            state,
            message=f"There is no folder {choice.model}, so it is taken as a hub id.",
            hint=f"{DOWNLOADED} Press enter to go on; or press esc and then o to use the hub's cache alone.",
        )
    found = planned(plan)
    if found is None:
        return _failed(plan)
    size = f"{found['architecture']}, {found['parameters'] / 1e6:.0f} million weights"
    if not found.get("chat_template", True):
        return Finding(
            "FAILED",
            (size,),
            "The model has no chat template, as is usual for a base model.",
            f"Press esc and then t to give it {CHATML}, or choose the instruction-tuned model.",
        )
    more = [f"chat template: {choice.chat_template}; press esc and t to go without"] * bool(
        choice.chat_template
    )
    return Finding("OK", (size, *_of_hub(choice, found), *more))


def _of_hub(choice: Choice, plan: Mapping[str, Any]) -> list[str]:
    """What a person should know of the download of a hub model."""
    if not choice.model_on_hub:
        return []
    if choice.offline:
        return ["offline: read from the hub's cache; press esc and o to allow downloads"]
    size = plan.get("download_mib", 0)
    return [
        f"{size:,} MiB of weights are downloaded when the build starts" if size else "its weights are here"
    ]


def target_finding(choice: Choice, shown: Outcome | None, plan: Outcome | None, machine: Host) -> Finding:
    """What the target makes of the model, and whether it runs on this machine."""
    if not choice.target.strip():
        return Finding("FAILED", message="No target is given.", hint=f"Type {DEFAULT_TARGET} for the demo.")
    if shown is None:
        return Finding()
    if (document := answered(shown)) is None:
        return _failed(shown)
    values = {key: entry["value"] for key, entry in document.items()}
    device = {
        key.removeprefix("device."): value for key, value in values.items() if key.startswith("device.")
    }
    apart = Device.model_validate(device).differs(machine)
    made = planned(plan) or {}
    exports = made.get("exports", [])
    limit = made.get("peak_rss_limit_mib") or values.get("budget.peak_rss_mib")
    lines = [
        *([str(values["summary"])] if values.get("summary") else []),
        f"device: {' or '.join(device['arch'])}, {device['threads']} threads, {device['memory_mib']:,} MiB",
        *(f"{export['format']} {export['type']}: about {export['estimated_mib']:.0f} MiB" for export in exports),
        f"peak memory of an answer: {f'at most {limit:,.0f} MiB' if limit else 'not limited'}",
        f"runs here: {f'no: {apart}, and this is {machine.arch} with {machine.cores} cores' if apart else 'yes'}",
    ]  # fmt: skip
    if choice.formats:
        lines.append(f"formats: only {' and '.join(choice.formats)}; press l to build all again")
    if refused := [f"{export['format']}: {export['refusal']}" for export in exports if export["refusal"]]:
        possible = " and ".join(possible_formats(plan))
        return Finding(
            "FAILED",
            tuple(lines),
            "This model cannot be built in every format of this target."
            if possible
            else "This model cannot be built for this target.",
            f"Press l to build only {possible}, or choose another target or model."
            if possible
            else "Choose another target, or another model.",
            tuple(refused),
        )
    if apart:
        return Finding(
            "WARNING",
            tuple(lines),
            "It can be built here. Its speed is then that of this machine, and marked as simulated.",
        )
    return Finding("OK", tuple(lines))


def data_finding(choice: Choice, audit: Outcome | None) -> Finding:
    """How many rows and labels, what the dataset card leaves open, or every fault with its line."""
    if not choice.data.strip():
        return Finding("FAILED", message="No data is given.", hint="Type demo for the built-in set.")
    if audit is None:
        return Finding()
    if (found := answered(audit)) is None:
        if must_be_downloaded(choice, audit):
            message = f"{at_home(choice.data)} is a hub data set that is not on this machine yet."
            key = "o to allow downloads" if choice.offline else "d to download it"
            return Finding("FAILED", message=message, hint=f"Press tab twice and {key}, or give a file.")
        failed = _failed(audit)
        if not leaks(audit):
            return replace(failed, hint=failed.hint.replace("--columns ", "press tab and type "))
        return replace(
            failed, hint="Keep each prompt in one split, or press tab twice and x to leave these rows out."
        )
    lines = [note for note in found.get("notes", []) if not note.startswith("rows:")]
    if lines and (example := found.get("example")):
        lines += [
            f"first row: {one_line(example['prompt'])[:60]}",
            f"its answer: {one_line(example['answer'])[:60]}",
        ]
    for split, count in found["rows"].items():
        labels = found["labels"][split]
        more = f", {len(labels)} labels, {min(labels.values())}+ rows each" if labels else ", no labels"
        lines.append(f"{split:<10} {count:>6,} rows{more}")
    lacks = ", ".join(found["missing_in_card"])
    if not lacks:
        return Finding("OK", (*lines, "The dataset card is complete."))
    return Finding(
        "WARNING",
        tuple(lines),
        f"The dataset card does not say: {lacks}.",
        "Write these to card.json in the data's folder (FILE.card.json for one file). The build goes on without.",
    )


def is_robust(choice: Choice, shown: Outcome | None) -> bool:
    """Whether the model is tuned robustly: as chosen, or as the target says."""
    own = (answered(shown) or {}).get("tune.robust", {}).get("value", False)
    return bool(own if choice.robust is None else choice.robust)


def toggled(choice: Choice, shown: Outcome | None) -> bool | None:
    """The other choice of robust tuning; None where it is the target's own."""
    other = not is_robust(choice, shown)
    return None if other == is_robust(replace(choice, robust=None), shown) else other


def leaks(audit: Outcome | None) -> bool:
    """Whether the rows are refused because prompts stand in two splits."""
    return audit is not None and audit.code != 0 and "--drop-leaks" in audit.hint


def must_be_downloaded(choice: Choice, audit: Outcome | None) -> bool:
    """Whether the data is a hub data set that is not on this machine yet."""
    return choice.data_on_hub and audit is not None and hub_data.NOT_CACHED in audit.message


def limits(choice: Choice, shown: Outcome | None) -> list[Limit]:
    """Every limit of the target's budget, with what was changed on top."""
    values = answered(shown) or {}
    own = dict(choice.limits)
    found = []
    for key, about in Budget.model_fields.items():
        value = values.get(f"budget.{key}", {}).get("value", about.default)
        words = " ".join((about.description or key).split())
        text = own.get(key, "none" if value is None else f"{value:g}")
        found.append(Limit(key, words, text, key in own, limit_fault(key, text) if key in own else ""))
    return found


def limit_fault(key: str, text: str) -> str:
    """Why `text` is no value for the limit `key`; empty when it is one."""
    try:
        if not math.isfinite(float(text)):
            raise ValueError
        Budget.model_validate({key: float(text)})
    except ValidationError as error:
        return f"{key}: {error.errors()[0]['msg']}, not {text!r}"
    except ValueError:
        return f"{key}: give a number, not {text!r}"
    return ""


def budget_finding(choice: Choice, shown: Outcome | None, plan: Outcome | None) -> Finding:
    """Whether the limits are numbers, and whether the estimated sizes keep to theirs."""
    found = limits(choice, shown)
    if faults := tuple(limit.fault for limit in found if limit.fault):
        return Finding(
            "FAILED", message="A limit is not valid.", hint="Correct it or clear it.", faults=faults
        )
    size = next(limit.value for limit in found if limit.key == "size_mib")
    document = planned(plan) or {}
    if size == "none":  # it follows from the size of the model
        size = document.get("size_limit_mib") or "none"
    largest = max((export["estimated_mib"] for export in document.get("exports", [])), default=0.0)
    if size != "none" and largest > ROUGH * float(size):
        return Finding(
            "WARNING",
            message=f"The largest file will be about {largest:.0f} MiB, and the limit is {size}: it may fail.",
        )
    changed = sum(limit.own for limit in found)
    return Finding("OK", (f"{changed} of {len(found)} limits changed" if changed else "the target's limits",))


def review_finding(
    choice: Choice, plan: Outcome | None, place: Finding | None, others: Iterable[Finding]
) -> Finding:
    """Whether there is room for the build and for its output, once no other step stands in the way."""
    if any(other.state in ("FAILED", "WAITING") for other in others):
        return Finding("WAITING")
    if place is None or plan is None:
        return Finding()
    found = planned(plan) or {}
    if found.get("problems"):
        return Finding("FAILED", (), plan.message, plan.hint, tuple(found["problems"]))
    return place


def possible_formats(plan: Outcome | None) -> tuple[str, ...]:
    """The formats that the plan can make, if it refuses others."""
    exports = (planned(plan) or {}).get("exports", [])
    names = tuple(export["format"] for export in exports if not export["refusal"])
    return names if len(names) < len(exports) else ()


def minutes(plan: Mapping[str, Any]) -> int:
    """How long the build may take."""
    return max(1, round(float(plan["minutes_expected"])))


def at_home(text: str) -> str:
    """A path as a shell would hand it on."""
    return os.path.expanduser(text.replace("\0", "").strip())


def _failed(outcome: Outcome) -> Finding:
    if outcome.code == 0:
        return Finding("FAILED", message=f"The answer of `{outcome.command.text}` cannot be read.")
    return Finding("FAILED", (), outcome.message, outcome.hint, outcome.faults)
