"""The questions that a build wizard asks of the shell commands, and their answers; outdated ones are dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edgekit.app.views.command import Command, Outcome
from edgekit.app.views.wizard import Choice, limit_fault
from edgekit.build.defaults import DEFAULT_DATA, DEFAULT_TARGET

MOST_ANSWERS = 64


class Checks:
    """One question of each kind at a time. Whoever asks gets `wanted`, runs each command and hands the outcome to `take`."""

    def __init__(self) -> None:
        self._answers: dict[Command, Outcome] = {}
        self._asked: dict[str, Command] = {}

    def wanted(self, choice: Choice, others: Sequence[Command] = ()) -> list[Command]:
        """The commands to run now for `choice`; those under way for an older choice are stopped."""
        questions: dict[str, Command | None] = {
            "target": choice.shown if choice.target.strip() else None,
            "data": choice.audit if choice.data.strip() else None,
        }
        sound = self.sound(choice)
        questions["plan"] = sound.plan if sound else None
        missing = (
            command for command in others if command not in self._answers and command != questions["plan"]
        )
        questions["other"] = next(missing, None)  # fmt: skip
        new = []
        for kind, command in questions.items():
            asked = self._asked.get(kind)
            if asked is not None and asked != command:
                self._asked.pop(kind).stop()
                asked = None
            if command is not None and asked is None and command not in self._answers:
                self._asked[kind] = command
                new.append(command)
        return new

    def take(self, command: Command, outcome: Outcome) -> bool:
        """Keep an answer, if its question still stands."""
        kind = next((kind for kind, asked in self._asked.items() if asked is command), None)
        if kind is None:
            return False
        del self._asked[kind]
        self._answers[command] = outcome
        while len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
        return True

    def answer(self, command: Command) -> Outcome | None:
        """The answer to `command`, once it is there."""
        return self._answers.get(command)

    def plan(self, choice: Choice) -> Outcome | None:
        """The plan of `choice`, with defaults in place of what has failed by itself."""
        sound = self.sound(choice)
        return None if sound is None else self.answer(sound.plan)

    def sound(self, choice: Choice) -> Choice | None:
        """`choice` with the default target or rows where its own have failed, so that the model is judged by itself.

        None until both are known, and for a model that only a fetch would bring here.
        """
        if choice.fetched or not choice.model.strip():
            return None
        fixed: dict[str, object] = {
            "limits": tuple((key, value) for key, value in choice.limits if not limit_fault(key, value))
        }
        for name, text, command in (
            ("target", choice.target, choice.shown),
            ("data", choice.data, choice.audit),
        ):
            answer = self.answer(command)
            if text.strip() and answer is None:
                return None
            if answer is None or answer.code != 0:
                fixed |= (
                    {"target": DEFAULT_TARGET, "limits": ()} if name == "target" else {"data": DEFAULT_DATA}
                )
        return replace(choice, **fixed)  # type: ignore[arg-type]

    def forget(self, failed: bool = True) -> bool:
        """Forget the answers that told of a failure, or all of them; whether there were any."""
        old = [command for command, outcome in self._answers.items() if outcome.code != 0 or not failed]
        for command in old:
            del self._answers[command]
        return bool(old)
