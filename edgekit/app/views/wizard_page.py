"""The build wizard's texts: the list of steps, the estimate, what a check says, and the review."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from edgekit.app.views.paths import Place
from edgekit.app.views.symbols import STYLES, Symbols
from edgekit.app.views.wizard import ROBUST, STEPS, Choice, Finding, minutes, planned
from edgekit.base.command import Outcome

MIB = 1024  # in a GiB


def steps_text(choice: Choice, found: Mapping[str, Finding], step: int, width: int) -> Text:
    """The five steps with their states and values; a click on one opens it."""
    values = {
        "model": choice.model,
        "target": choice.target,
        "data": choice.data,
        "budget": f"{len(choice.limits)} changed" if choice.limits else "the target's limits",
        "review": choice.place.name,
    }
    lines = []
    for number, name in enumerate(STEPS):
        here = number == step
        head = Text(f"{Symbols.here if here else ' '} {number + 1} {name:<8} ", "bold" if here else "")
        head.append_text(_state(found[name]))
        value = Text(f"    {values[name]}", "dim", no_wrap=True)
        if value.cell_len > width:
            value.truncate(width - len(Symbols.ellipsis))
            value.append(Symbols.ellipsis)
        for part in (head, value):
            part.apply_meta({"@click": f"screen.open({number})"})
        lines += [head, value]
    return Text("\n").join(lines)


def estimate_text(plan: Outcome | None) -> Text:
    """What the build makes and needs."""
    lines = [Text(f"{name:<7} {value}") for name, value in _needs(plan).items()]
    return Text("\n").join([Text("estimate", "bold"), *lines])


def _needs(plan: Outcome | None) -> dict[str, str]:
    found = planned(plan)
    if found is None:
        return dict.fromkeys(("files", "time", "memory", "disk"), "-")
    sizes = [f"{export['estimated_mib']:.0f}" for export in found["exports"] if not export["refusal"]]
    return {
        "files": f"{' + '.join(sizes)} MiB" if sizes else "none",
        "time": f"about {minutes(found)} min",
        "memory": _of(found["memory_needed_mib"], found["memory_available_mib"]),
        "disk": _of(found["disk_needed_mib"], found["disk_free_mib"]),
    }


def found_text(finding: Finding) -> Text:
    """What a check says: its state, what it found, and every fault with what to do."""
    lines = [_state(finding), *map(Text, finding.lines)]
    if finding.message:
        lines.append(Text(finding.message, STYLES[finding.state]))
    lines += [Text(f"  {fault}") for fault in finding.faults]
    if finding.hint:
        lines.append(Text(finding.hint))
    return Text("\n").join(lines)


def robust_text(robust: bool) -> Text:
    """The switch of robust tuning, and what it does."""
    state = Text(f"{Symbols.ok} robust tuning is on" if robust else "robust tuning is off", "bold")
    return state.append(
        f" (press tab twice and u to turn it {'off' if robust else 'on'}). {ROBUST}", "not bold"
    )


def review_text(
    choice: Choice, plan: Outcome | None, finding: Finding, end: str, *, robust: bool = False
) -> RenderableType:
    """Where it is written, what it needs of what is free, and the command; the other steps stand on the left."""
    table = Table.grid(padding=(0, 1))
    tuning = "robust (u: plain)" if robust else "plain (u: robust, takes longer)"
    for name, value in {"output": str(choice.place), "tuning": tuning, **_needs(plan)}.items():
        table.add_row(name, Text(value, overflow="fold"))
    command = Text(f"$ {choice.build.text}", overflow="fold")
    return Group(table, found_text(finding), "", Text(end, "bold"), command)


def end_text(found: Mapping[str, Finding], place: Place | None, busy: bool) -> str:
    """What the review asks of the person now."""
    if failed := [step for step in STEPS if found[step].state == "FAILED"]:
        more = f" n takes {place.other} instead." if place and place.other else ""
        return f"The build cannot start yet: check {', '.join(failed)}.{more}"
    if busy:
        return "Starting."
    if any(one.state == "CHECKING" for one in found.values()):
        return "The checks are under way."
    return "Press b to build. The build continues after you close the app."


def _state(finding: Finding) -> Text:
    return Text(f"{Symbols.of(finding.state)} {finding.state.lower()}", STYLES[finding.state])


def _of(needed_mib: float, free_mib: float) -> str:
    return f"{needed_mib / MIB:.1f} of {free_mib / MIB:.1f} GiB"
