"""The questions that a build wizard asks of the shell commands, and their answers; outdated ones are dropped."""

from __future__ import annotations

from edgekit.app.views.wizard import Choice, downloads, limit_fault
from edgekit.base.command import Command, Outcome

MOST_ANSWERS = 64


class Checks:
    """Whoever asks gets `wanted`, runs each command and hands the outcome to `take`."""

    def __init__(self) -> None:
        self._answers: dict[Command, Outcome] = {}
        self._asked: dict[Command, Command] = {}

    def wanted(self, choice: Choice, *, typing: bool = False) -> list[Command]:
        """The commands to run now for `choice`; those under way for an older choice are stopped.

        While a person is `typing` the name of a model, no plan asks the hub for it.
        """
        questions = [choice.shown] if choice.target.strip() else []
        questions += [choice.audit] if choice.data.strip() else []
        questions += [choice.plan] if self.plannable(choice) and not (typing and downloads(choice)) else []
        for command in set(self._asked) - set(questions):
            self._asked.pop(command).stop()
        new = [each for each in questions if each not in self._answers and each not in self._asked]
        self._asked.update({command: command for command in new})
        return new

    def take(self, command: Command, outcome: Outcome) -> bool:
        """Keep an answer, if its question still stands."""
        if self._asked.get(command) is not command:
            return False
        del self._asked[command]
        self._answers[command] = outcome
        while len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
        return True

    def answer(self, command: Command) -> Outcome | None:
        """The answer to `command`, once it is there."""
        return self._answers.get(command)

    def plannable(self, choice: Choice) -> bool:
        """Whether a plan says something of the model: there is one, and target, rows and limits are in order."""
        found = [self.answer(command) for command in (choice.shown, choice.audit)]
        in_order = all(answer is not None and answer.code == 0 for answer in found)
        return (
            in_order
            and bool(choice.model.strip())
            and not any(limit_fault(*limit) for limit in choice.limits)
        )

    def forget(self) -> None:
        """Forget all answers."""
        self._answers.clear()
