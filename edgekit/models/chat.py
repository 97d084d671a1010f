"""Chat templates, rendered in the same way for tuning, in the proofs and on the device.

The variables are those of `transformers.PreTrainedTokenizerBase.apply_chat_template`. The Jinja dialect is in
`edgekit.models.template`, the limits of steps and text are in `edgekit.models.meter`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError, nodes

from edgekit.base.errors import ConfigError, CorruptError
from edgekit.data.rows import Message
from edgekit.models import template
from edgekit.models.meter import LimitReached, metered

# Errors of Jinja, and of Python while a template's expressions are compiled and evaluated.
REFUSALS = (
    TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, SyntaxError, AssertionError,
)  # fmt: skip


def parse(source: str) -> nodes.Template:
    """The syntax tree of a template, in the dialect that `ChatTemplate` renders.

    Raises `CorruptError` for a template that exceeds the limits, and jinja2's `TemplateSyntaxError` for a malformed one.
    """
    with _limits_told():
        return template.parse(source)


@contextmanager
def _limits_told() -> Iterator[None]:
    try:
        yield
    except (LimitReached, RecursionError, MemoryError) as error:
        reason = str(error) if isinstance(error, LimitReached) else "it is nested too deeply"
        raise CorruptError(
            f"The model's chat template was stopped: {reason}. No answer was generated.",
            "Chat templates are rendered within fixed limits. Get the model from a source that you trust.",
        ) from error


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with its special tokens."""

    source: str
    bos_token: str = ""
    eos_token: str = ""

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The text that the model reads for `messages`.

        Raises `ConfigError` when the template is malformed or refuses the conversation, and `CorruptError` when it
        exceeds the limits of steps and text. Fields that are None are left out, and `tools` and `documents` are
        None unless given, as in transformers.
        """
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        values = {
            "messages": given,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        values |= {name: token for name, token in tokens.items() if token} | variables
        try:
            with _limits_told(), metered(_characters(values)):
                return template.compiled(self.source).render(values)
        except CorruptError:
            raise
        except REFUSALS as error:
            raise ConfigError(
                f"The model's chat template refused a conversation: {error}",
                "Check the roles and their order: most templates require alternating user and assistant messages.",
            ) from error

    def prompt_and_answer(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The rendered prompt and the rendered rest: the last message and the text after it.

        Their sum is `render(messages)`. Raises `ConfigError` when the template does not print the prompt first.
        """
        prompt = self.render(messages[:-1], add_generation_prompt=True)
        whole = self.render(messages)
        if not whole.startswith(prompt):
            raise ConfigError(
                "The chat template renders a conversation that does not begin with its own prompt, so a tuned model "
                "would see other prompts than in use. Nothing was tuned.",
                "Use a template whose generation prompt is a prefix of the rendered answer.",
            )
        return prompt, whole[len(prompt) :]


def _characters(value: Any) -> int:
    """The size of a template's input: the number of characters of all texts in `value`."""
    if isinstance(value, str):
        return len(value)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return 16 + sum(map(_characters, parts))
