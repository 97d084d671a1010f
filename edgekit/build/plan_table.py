"""The plan of a build as a table for the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.build.plan import Plan


def plan_table(plan: Plan) -> RenderableType:
    """What a build would do and need; fits 80 columns."""
    rows = ", ".join(f"{count} {split}" for split, count in plan.rows.items())
    facts = Table.grid(padding=(0, 2))
    for name, value in {
        "model": f"{plan.model} ({plan.architecture}, {plan.parameters / 1e6:.0f} M weights)",
        "target": plan.target,
        "rows": rows,
        "time": f"about {plan.minutes_expected:.0f} min on this machine",
        **({"tuning": "with gradient checkpointing, to save memory"} if plan.gradient_checkpointing else {}),
        **({"adapter": plan.left_out} if plan.left_out else {}),
        **({"download": f"about {plan.download_mib:,} MiB of weights"} if plan.download_mib else {}),
        "disk": f"about {plan.disk_needed_mib:,} MiB needed, {plan.disk_free_mib:,} MiB free",
        "memory": f"about {plan.memory_needed_mib:,} MiB needed, {plan.memory_available_mib:,} MiB available",
    }.items():
        facts.add_row(Text(name, style="bold"), value)
    exports = Table(box=None, padding=(0, 2), header_style="bold")
    for column in ("format", "type", "about MiB", "can be made"):
        exports.add_column(column, justify="right" if column == "about MiB" else "left")
    for export in plan.exports:
        verdict = f"✗ no: {export.refusal}" if export.refusal else "✓ yes"
        exports.add_row(export.format, export.type, f"{export.estimated_mib:.0f}", verdict)
    problems = [Text(f"✗ {problem}", style="red") for problem in plan.problems]
    return Group(facts, "", exports, *problems)
