"""Whether the confidence of the files of a build can be trusted, in words and as rows of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgekit.report.summary import figure, percent

AT_RISK = "rows that can be answered with at most {} errors"


def measured(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The calibration of each file that has one, by format."""
    return {name: one for name, one in (report.get("calibration") or {}).items() if is_measured(one)}


def is_measured(found: Mapping[str, Any]) -> bool:
    """Whether a calibration has figures, rather than a reason why it has none."""
    return bool(found.get("before") and found.get("after"))


def refused(report: Mapping[str, Any]) -> list[str]:
    """Why files have no calibration, each reason once."""
    found = (report.get("calibration") or {}).values()
    return list(dict.fromkeys(one["refused"] for one in found if one.get("refused")))


def rows(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures of one file: their names, which are the same for each file, and what was measured."""
    before, after = found["before"], found["after"]
    told = [
        ("calibration error", percent(after["ece"])),
        ("calibration error without the temperature", percent(before["ece"])),
        ("temperature", figure(found["temperature"])),
    ]
    told += [
        (AT_RISK.format(percent(float(risk))), percent(share))
        for risk, share in after["coverage_at_risk"].items()
    ]
    return [
        *told,
        ("threshold of --min-confidence auto", percent(found.get("threshold"))),
        (
            "threshold of --refuse-out-of-scope (log-likelihood of each token)",
            figure(found.get("scope_threshold")),
        ),
    ]


def short(report: Mapping[str, Any]) -> list[str]:
    """One line for each file that has a calibration: its error, and what the device refuses by itself."""
    lines = []
    for name, found in measured(report).items():
        line = (
            f"{name}: calibration error {percent(found['after']['ece'])} on {found['rows']} validation rows"
        )
        if (threshold := found.get("threshold")) is not None:
            line += f"; --min-confidence auto refuses below {percent(threshold)}"
        if (threshold := found.get("scope_threshold")) is not None:
            line += f"; --refuse-out-of-scope refuses below a score of {figure(threshold)}"
        lines.append(line)
    return lines
