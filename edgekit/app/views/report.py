"""A report made safe to show, wherever it comes from: texts printable, numbers finite, rows whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.base.numbers import finite
from edgekit.base.texts import one_line

MOST_ROWS = 2000  # of one list


def cleaned(report: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a report that can be shown; what is missing, of another kind or not finite is left out."""
    evaluation, budget = report.get("evaluation"), report.get("budget")
    return {
        "target": text(report.get("target")) or "an unknown target",
        "model": text(report.get("model")),
        "verdict": text(report.get("verdict")) or "unknown",
        "artifacts": [
            _entry(row, ("format", "path"), ("bytes", "bits_per_weight"))
            for row in _rows(report.get("artifacts"), "format", "path")
        ],
        "stages": [
            {"name": text(row["name"]), **{kind: _drift(row.get(kind)) for kind in ("drift", "drift_from_input")}}
            for row in _rows(report.get("stages"), "name")
        ],
        "evaluation": {
            text(name): {"accuracy": finite(scores.get("accuracy")), "n": _count(scores.get("n"))}
            for name, scores in (evaluation.items() if isinstance(evaluation, dict) else ())
            if isinstance(scores, dict)
        },
        "profile": [
            {
                **_entry(row, ("artifact", "runtime"), ("peak_rss_mib",)),
                "threads": _count(row.get("threads")),
                "simulated": row.get("simulated") is True,
                **{key: _spread(row.get(key)) for key in ("ttft_ms", "decode_tokens_per_s")},
            }
            for row in _rows(report.get("profile"), "artifact")
        ],
        "gates": [
            {**_entry(row, ("name", "detail", "stage"), ("value", "limit")), "passed": row.get("passed") is True}
            for row in _rows(report.get("gates"), "name")
        ],
        "budget": _numbers(budget),
    }  # fmt: skip


def text(value: Any) -> str:
    """A text that can be shown on one line; empty when it is none."""
    return one_line(value) if isinstance(value, str) else ""


def _count(value: Any) -> int | None:
    found = finite(value)
    return None if found is None or found < 0 else int(found)


def _rows(value: Any, *named: str) -> list[dict[str, Any]]:
    """The dicts of a list in which each of `named` is a text."""
    rows = [row for row in value[:MOST_ROWS] if isinstance(row, dict)] if isinstance(value, list) else []
    return [row for row in rows if all(text(row.get(name)) for name in named)]


def _entry(row: Mapping[str, Any], texts: Sequence[str], numbers: Sequence[str]) -> dict[str, Any]:
    return {name: text(row.get(name)) for name in texts} | {name: finite(row.get(name)) for name in numbers}


def _numbers(value: Any) -> dict[str, float]:
    if not isinstance(value, dict):
        return {}
    return {text(key): known for key, each in value.items() if (known := finite(each)) is not None}


def _spread(value: Any) -> dict[str, float]:
    found = _numbers(value)
    return found if "median" in found else {}


def _drift(value: Any) -> dict[str, Any] | None:
    found = _numbers(value)
    if found.get("mean_kld_nats", -1.0) < 0:
        return None
    interval = value.get("mean_kld_95")
    known = [finite(edge) for edge in interval] if isinstance(interval, list) else []
    return {**found, "mean_kld_95": known if len(known) == 2 and None not in known else None}
