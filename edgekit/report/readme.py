"""The bundle's README.md: its contents, its quality, and an example that loads it in each runtime."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader

from edgekit.proof.bare import CAUSES
from edgekit.report import allocation, failures, robustness, summary

PACKAGES = {
    "llama.cpp": "llama-cpp-python",
    "onnxruntime": "onnxruntime-genai",
}  # the packages that apps install

_environment = Environment(  # Markdown, not HTML: `code` and `cell` do all the escaping
    loader=PackageLoader("edgekit.report", ""),
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_environment.filters.update(
    exact=summary.exact,
    figure=summary.figure,
    percent=summary.percent,
    mib=summary.mib,
    cell=lambda text: str(text).replace("|", "\\|").replace("\n", " "),
    code=lambda text: json.dumps(text, ensure_ascii=False),  # one line, and a valid Python string
    shell=lambda text: shlex.quote(text),
)


def bundle_readme(manifest: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """Markdown for the bundle that `manifest` (schema `edgekit.bundle/1`) describes and `report` measured.

    There is an example for each of the manifest's `formats`, asking `manifest["example"]`: a dict of `messages` and
    the `answer` that the data expects. Every fenced block marked `python` runs in the bundle's folder.
    """
    example = manifest["example"]
    longest = max(map(len, re.findall("`+", json.dumps(example["messages"]))), default=0)
    contents = {message["role"]: message["content"] for message in example["messages"]}
    return _environment.get_template("readme.md.jinja").render(
        manifest=manifest,
        title=f"{manifest['name']} for {manifest['target']}",
        passed=summary.passed(report),
        verdict=summary.verdict_word(report),
        sentence=summary.verdict_sentence(report),
        failed=summary.failed_gates(report),
        simulation=summary.simulation(report),
        variants=summary.variants(report),
        failing=failures.short(report),
        robust=robustness.short(report),
        allocated=allocation.short(report),
        paths={name: entry["path"] for name, entry in manifest["formats"].items()},
        bare={name: found for name, found in (manifest.get("bare_runtime") or {}).items() if found},
        deviations={name: found for name, found in (manifest.get("deviations") or {}).items() if found},
        packages={
            name: PACKAGES.get(entry["runtime"], entry["runtime"])
            for name, entry in manifest["formats"].items()
        },
        calibrated=any("temperature" in found for found in (report.get("calibration") or {}).values()),
        causes=CAUSES,
        messages=example["messages"],
        answer=example.get("answer"),
        system=contents.get("system"),
        user=contents["user"],
        fence="`" * max(3, longest + 1),
    )
