"""`edgekit incident list|show|ack|silence|close|audit`: the incidents of this device, and changes to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.base.errors import CorruptError
from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.field.incidents.incidents import Incident, Incidents

app = typer.Typer(help="Show and manage the incidents of this device.", no_args_is_help=True)

Number = Annotated[int, typer.Argument(metavar="ID", help="The incident's number.")]
Why = Annotated[str, typer.Option("--why", help="The reason, for the audit log.")]


def register(parent: typer.Typer) -> None:
    """Add `incident` to `parent`."""
    parent.add_typer(app, name="incident")


@app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Include resolved incidents.")] = False,
    state: shell.StateDir = shell.DEFAULT_STATE,
    json: shell.Json = False,
    verbose: shell.Verbose = False,
) -> None:
    """List the open incidents, worst first."""
    from edgekit.field.incidents.incidents import Incidents

    found = Incidents(shell.present(state)).find(everything=everything)
    if json:
        shell.print_json({"incidents": [incident.to_dict() for incident in found]})
        return
    for incident in found:
        shell.say(f"{incident.id:>4}  {_status(incident):<36}  {incident.what}")
    if not found:
        shell.say("There are no open incidents.")


@app.command("show")
def show(
    number: Number,
    state: shell.StateDir = shell.DEFAULT_STATE,
    json: shell.Json = False,
    verbose: shell.Verbose = False,
) -> None:
    """Show one incident: what happened, what changed before it, the next steps, and its history."""
    from edgekit.field.incidents import evidence
    from edgekit.field.incidents.account import account

    told = account(state, number)
    if json:
        shell.print_json(told.to_dict())
        return
    from edgekit.base.clock import clock
    from edgekit.field.incidents.words import LABELS

    incident, book, path = told.incident, told.book, evidence.path_of(state, number)

    shell.say(f"INCIDENT {number}  {LABELS[incident.kind]}  {_status(incident)}")
    shell.say(f"{incident.what}\n\n{book.meaning}\n")
    shell.say(f"Release   {incident.release or 'a model file without a manifest'}")
    shell.say(f"Rule      {incident.rule}, reported {clock(incident.opened)}")
    if path.is_file():
        shell.say(f"Evidence  {path}")
    shell.say("\nChanges in the day before")
    for switch in told.before:
        shell.say(f"  {clock(switch.time)}  {switch.what} {switch.release}  {switch.who}: {switch.why}")
    if not told.before:
        shell.say("  No change of release.")
    shell.say("\nNext steps")
    for place, step in enumerate(book.steps, 1):
        shell.say(f"  {place}. {step.text}" + (f":\n       {step.command}" if step.command else "."))
    shell.say("\nHistory")
    for change in told.timeline:
        shell.say(
            f"  {clock(change['time'])}  {change['what']}  {change['who']}: {change['why']}".rstrip(": ")
        )


def _by_hand(name: str, text: str, change: Callable[[Incidents], Callable[..., Incident]]) -> None:
    """Add the verb `name` that changes one incident, with the method `change` and a reason."""

    @app.command(name, help=text)
    def verb(
        number: Number,
        why: Why,
        who: shell.Who = None,
        state: shell.StateDir = shell.DEFAULT_STATE,
        json: shell.Json = False,
        verbose: shell.Verbose = False,
    ) -> None:
        from edgekit.field.incidents.audit import operator
        from edgekit.field.incidents.incidents import Incidents

        _told(change(Incidents(state))(number, who=who or operator(), why=why), json)


_by_hand(
    "ack",
    "Acknowledge an incident: you have seen it and are working on it.",
    lambda incidents: incidents.acknowledge,
)


@app.command("silence")
def silence(
    number: Number,
    why: Why,
    for_: Annotated[str, typer.Option("--for", metavar="TIME", help="How long: 30m, 2h, 1d.")],
    who: shell.Who = None,
    state: shell.StateDir = shell.DEFAULT_STATE,
    json: shell.Json = False,
    verbose: shell.Verbose = False,
) -> None:
    """Silence an incident for a time: no notifications, no automatic action. Then it is reported again."""
    from edgekit.base.clock import seconds
    from edgekit.field.incidents.audit import operator
    from edgekit.field.incidents.incidents import Incidents

    until = time.time() + seconds(for_)
    _told(Incidents(state).silence(number, until=until, who=who or operator(), why=why), json)


_by_hand(
    "close",
    "Close an incident. If the reading stays beyond its limit, a new one is opened.",
    lambda incidents: incidents.close,
)


@app.command("audit")
def audit(
    state: shell.StateDir = shell.DEFAULT_STATE, json: shell.Json = False, verbose: shell.Verbose = False
) -> None:
    """Show the audit log, and check that no line was changed or removed."""
    from edgekit.base.clock import clock
    from edgekit.field.incidents.audit import Audit

    log = Audit(shell.present(state))
    faults, entries = log.check(), log.entries()
    if json and not faults:
        shell.print_json({"whole": True, "entries": entries})
    if not json:
        if not entries:
            shell.say("The audit log is empty.")
        for entry in entries:
            when, number = (
                clock(float(entry.get("time", 0))),
                entry.get("incident") or entry.get("release") or "",
            )
            shell.say(
                f"{when}  {number:>12}  {entry.get('what')}  {entry.get('who')}: {entry.get('why')}".rstrip(
                    ": "
                )
            )
    if faults:
        told = "; ".join(f"line {fault.line}: {fault.what}" for fault in faults)
        raise CorruptError(f"{log.path} was changed: {told}.", "Compare it with a copy kept elsewhere.")


def _told(incident: Incident, json: bool) -> None:
    if json:
        shell.print_json({"incident": incident.to_dict()})
    else:
        shell.say(f"Incident {incident.id} is {_status(incident)}.")


def _status(incident: Incident) -> str:
    from edgekit.base.clock import clock

    words = [incident.state, incident.severity]
    if incident.state != "RESOLVED" and incident.silenced(time.time()):
        words.append(f"silenced until {clock(incident.silenced_until or 0.0)}")
    return ", ".join(words)
