"""The log of an evaluation: one JSON object for each row, with the prompt, the expected and the model's answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.base.artifacts import written_whole
from edgekit.base.errors import ConfigError, CorruptError, reason

SAMPLES = "samples.jsonl"
"""The name of the log in the folder of a stage."""
METRICS = ("exact_match", "acc", "prompt_level_strict_acc")
"""Metrics of lm-evaluation-harness that say whether one sample is right."""
LOGS = "Sample logs are the files that `edgekit eval task` and `eval robust` write, and those in the folder samples/ of a bundle."
AGAIN = "Give a log that `edgekit eval task` or `eval robust` wrote; if this is one, run that command again."


def write_log(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Write the samples as JSONL, completely or not at all."""
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    with written_whole(path, force=True) as staging:
        staging.write_text("".join(lines), encoding="utf-8")


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples that `write_log` wrote."""
    lines = path.read_text("utf-8").split("\n")  # an answer may hold other line ends
    return [json.loads(line) for line in lines if line.strip()]


@dataclass(frozen=True)
class Scored:
    """One line of a log: which row, asked in which variant (empty for the row itself), and whether the answer is right."""

    id: str
    label: str
    variant: str
    correct: bool

    @property
    def key(self) -> str:
        """The id, with the variant behind it in a log of `eval robust`."""
        return f"{self.id} ({self.variant})" if self.variant else self.id


def read_scored(path: Path) -> list[Scored]:
    """The lines of a sample log of edgekit's, or of lm-evaluation-harness' (`--log_samples`).

    Raises `ConfigError` when there is no such file and `CorruptError` when it is malformed or empty.
    """
    if path.is_dir():
        logs = sorted([*path.glob("samples/*.jsonl"), *path.glob("*.jsonl")])
        raise ConfigError(
            f"{path} is a folder, not a sample log.",
            f"Give one of the logs in it, such as {logs[-1]}." if logs else LOGS,
        )
    try:
        with path.open(encoding="utf-8") as lines:
            samples = [json.loads(line) for line in lines]
        found = [_lm_eval(one) if "doc_id" in one else _own(one) for one in samples]
    except FileNotFoundError:
        raise ConfigError(f"There is no sample log {path}.", LOGS) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"{path} is not a complete log of `edgekit eval`: {_fault(error)}.", AGAIN
        ) from error
    if not found:
        raise CorruptError(f"{path} holds no samples.", AGAIN)
    return found


def _fault(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"a line has no {error}"
    return "it has a line that is not JSON" if isinstance(error, json.JSONDecodeError) else reason(error)


def _own(one: Mapping[str, Any]) -> Scored:
    return Scored(
        str(one["id"]), str(one.get("label") or ""), str(one.get("variant") or ""), bool(one["correct"])
    )


def _lm_eval(one: Mapping[str, Any]) -> Scored:
    """A sample of lm-evaluation-harness; a document has one for each filter, and its own id if it carries one."""
    doc = one["doc"] if isinstance(one["doc"], Mapping) else {}
    metric = next((name for name in METRICS if name in one), METRICS[0])
    filter_ = str(one.get("filter") or "none")
    return Scored(
        str(doc.get("id") or one["doc_id"]),
        str(doc.get("label") or ""),
        "" if filter_ == "none" else filter_,
        float(one[metric]) > 0.5,
    )


def read_log(path: Path) -> dict[str, bool]:
    """Whether each row of a sample log was answered correctly, by id; by id and variant in a log of `eval robust`.

    Raises as `read_scored` does.
    """
    return {one.key: one.correct for one in read_scored(path)}
