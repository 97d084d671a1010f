"""Print the table of docs/targets.md from the bundles of the shipped targets.

python tools/targets_table.py BUNDLE...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from edgekit.registry import load
from edgekit.report import summary
from edgekit.targets.target import GgufExport, OnnxExport

COLUMNS = (
    "target", "type", "bits per weight", "MiB", "right answers", "mean KLD, nats", "p99, nats", "same token",
    "first token, ms", "decode, tokens/s", "peak, MiB", "verdict", "speed and memory",
)  # fmt: skip


def main() -> None:
    """One row for each file of each bundle."""
    print(f"| {' | '.join(COLUMNS)} |")
    print("|---|---|" + "--:|" * (len(COLUMNS) - 4) + "---|---|")
    for bundle in map(Path, sys.argv[1:]):
        report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
        exports = {
            export.format: export for export in load("profiles", "targets").load(report["target"]).export
        }
        for file, artifact in zip(summary.exported(report), report["artifacts"], strict=True):
            failed = [gate["name"] for gate in summary.failed_gates(report)]
            cells = (
                report["target"],
                kind(exports[artifact["format"]]),
                summary.figure(file.bits_per_weight),
                summary.mib(file.bytes),
                summary.percent(file.accuracy),
                summary.figure(file.drift["mean_kld_nats"]),
                summary.figure(file.drift["p99_kld_nats"]),
                summary.percent(file.drift["top1_agreement"]),
                summary.figure(file.ttft),
                summary.figure(file.decode),
                summary.figure(file.speed["peak_rss_mib"]),
                ", ".join(failed) or "passed",
                summary.conditions(file.speed),
            )
            print(f"| {' | '.join(cells)} |")


def kind(export: object) -> str:
    """The type of an export with the types of single tensors."""
    if isinstance(export, GgufExport):
        return ", ".join([f"GGUF {export.type}", *(f"{k} {v}" for k, v in export.tensor_types.items())])
    return f"ONNX {export.precision}" if isinstance(export, OnnxExport) else str(export)


if __name__ == "__main__":
    main()
