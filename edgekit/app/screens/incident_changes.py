"""What a person changes from the incident screen, each with a reason: acknowledge, silence, close, and roll back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgekit.app.screens.base import View
from edgekit.app.screens.dialogs import Ask, Confirm
from edgekit.app.screens.health_watch import HealthWatch
from edgekit.app.views import rollback
from edgekit.app.views.incident import is_over, label
from edgekit.app.views.incident_reader import Found
from edgekit.app.views.rollback import Plan
from edgekit.base.clock import seconds
from edgekit.base.command import Outcome
from edgekit.base.errors import EdgekitError
from edgekit.field.fleet.device import HERE, Device
from edgekit.field.fleet.recovery import Recovery
from edgekit.field.incidents.incidents import Incident

SILENCE = "1h"


class Changing(View):
    """A screen with the incidents of a device, one of which is chosen."""

    found: Found | None = None
    number: int | None = None
    """The incident that is shown; None for the list."""
    other: Device | None = None
    """The device, where it is not this one."""

    @property
    def device(self) -> Device:
        """Where the incidents are."""
        return self.other or Device(HERE, state=self.edgekit.settings.state)

    @property
    def subject(self) -> object:
        """What is shown: a question that was asked for while this was is not put while another is."""
        return self.number, self.other

    @property
    def chosen(self) -> int | None:
        """The number of the incident that a key is about."""
        return self.number

    def say(self, words: str) -> None:
        """Show a sentence that stays until the next one."""
        raise NotImplementedError

    def again(self) -> None:
        """Something was changed: look anew."""
        raise NotImplementedError

    def action_acknowledge(self) -> None:
        """Say that you work on it."""
        if incident := self._incident():
            text = f"Acknowledge incident {incident.id}: what are you doing about it?"
            self._why(text, partial(self._change, "ack", incident))

    def action_close(self) -> None:
        """End it by hand."""
        if incident := self._incident():
            text = (
                f"Close incident {incident.id}. If its rule still applies, a new incident is opened. Reason?"
            )
            self._why(text, partial(self._change, "close", incident))

    def action_silence(self) -> None:
        """Tell nobody for a time."""
        incident = self._incident()
        if incident is None:
            return

        def timed(typed: str | None) -> None:
            length = typed or SILENCE
            try:
                seconds(length)
            except EdgekitError as error:
                self.complain(error)
                return
            if typed is not None:
                text = f"Silence incident {incident.id} for {length}: why?"
                self._why(text, lambda why: self._change("silence", incident, why, "--for", length))

        text = f"Silence incident {incident.id} for how long? For example 30m, 1h or 1d."
        self.app.push_screen(Ask(text, SILENCE, SILENCE), timed)

    def action_roll_back(self) -> None:
        """Read the releases of the device, then ask."""
        device = self.device
        if self._by_ssh() and self.edgekit.may_change():
            self.say(f"Reading the releases of {device.called}...")
            self.edgekit.ask(device.command("releases", "list"), partial(self._planned, device, self.subject))

    def _by_ssh(self) -> bool:
        """Whether the device can be changed from here; says what to do when it cannot."""
        if self.device.url:
            self.say(
                "A device that is read by URL cannot be changed or rolled back from here. Name it as "
                f"{self.device.name}=ssh:USER@HOST, or roll back on the device."
            )
        return not self.device.url

    def _incident(self) -> Incident | None:
        """The incident that a key is about, if it can be changed; else says why it cannot."""
        if not self._by_ssh():
            return None
        found = self.found or Found()
        incidents = [*found.incidents, *([found.shown.incident] if found.shown else [])]
        incident = next((one for one in incidents if one.id == self.chosen), None)
        if incident is None:
            self.say("No incident is selected.")
        elif is_over(incident):
            self.say(f"Incident {incident.id} is already resolved; nothing changed.")
        elif self.edgekit.may_change():
            return incident
        return None

    def _why(self, text: str, then: Callable[[str], object], reason: str = "") -> None:
        def answered(why: str | None) -> None:
            if why:
                then(why)
            elif why is not None:
                self.say("Every change needs a reason for the log; nothing changed.")

        self.app.push_screen(Ask(text, "reason, for the log", reason), answered)

    def _change(self, verb: str, incident: Incident, why: str, *more: str) -> None:
        command = self.device.change("incident", verb, str(incident.id), "--why", why, *more)
        self.edgekit.act(command, self._changed)

    def _changed(self, outcome: Outcome) -> None:
        self.say("" if outcome.code == 0 else f"{outcome.message} {outcome.hint}".strip())
        self.again()

    def _planned(self, device: Device, subject: object, outcome: Outcome) -> None:
        if subject != self.subject:
            return  # the person is looking at something else by now
        self.say("")
        if not self.is_current:
            return
        try:
            plan = rollback.plan(outcome, device)
        except EdgekitError as error:
            self.say(f"{error.message} {error.hint}".strip())
            return
        shown = self.found.shown if self.found else None
        reason = f"incident {shown.incident.id}: {label(shown.incident).lower()}" if shown else ""
        self._why(
            "Why roll back? The reason is written to the release log.",
            partial(self._confirm, plan, device),
            reason,
        )

    def _confirm(self, plan: Plan, device: Device, why: str) -> None:
        command = rollback.rollback(device, plan.leaving, why)

        def confirmed(yes: bool | None) -> None:
            if yes:
                self.edgekit.act(command, partial(self._rolled, device))

        lines = plan.lines()  # the command before what it does: a small terminal shows the first lines
        text = "\n".join(
            [f"Roll back {device.called}", "", *lines[:2], "", f"$ {command.text}", "", *lines[2:]]
        )
        self.app.push_screen(Confirm(text, plan.typed), confirmed)

    def _rolled(self, device: Device, outcome: Outcome) -> None:
        self._changed(outcome)
        if outcome.code == 0:
            watch = Recovery(device, rollback.in_use_now(outcome), self.edgekit.now())
            self.app.push_screen(HealthWatch(watch), lambda words: self.say(words or ""))
