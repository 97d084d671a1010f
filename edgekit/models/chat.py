"""Chat templates, rendered the same way at tuning time, in the proofs and on the device.

Follows `transformers.utils.chat_template_utils`: Jinja with `trim_blocks` and `lstrip_blocks`, loop controls, the
`{% generation %}` tag, `raise_exception`, `strftime_now` and a `tojson` that keeps unicode; always in Jinja's
immutable sandbox, because a template is code that comes with a downloaded file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgekit.base.errors import ConfigError

Message = Mapping[str, str]


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks an answer for training; it renders what it holds."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@lru_cache(maxsize=32)
def _compiled(source: str) -> Template:
    return _environment().from_string(source)


def parse(source: str) -> nodes.Template:
    """The syntax tree of a template, in the dialect that `ChatTemplate` renders."""
    return _environment().parse(source)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with the tokens it may print."""

    source: str
    bos_token: str = ""
    eos_token: str = ""

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> str:
        """The text the model reads for `messages`.

        Raises `ConfigError` when the template is malformed or refuses the conversation.
        """
        try:
            return _compiled(self.source).render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                **variables,
            )
        except TemplateError as error:
            raise ConfigError(
                f"The model's chat template refused a conversation: {error}",
                "Check the roles and their order: most templates want user and assistant in turn.",
            ) from error

    def prompt_and_answer(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The rendered prompt and the rendered rest: the last message with what the template puts after it.

        Their sum is `render(messages)`. Raises `ConfigError` when the template does not print the prompt first.
        """
        prompt = self.render(messages[:-1], add_generation_prompt=True)
        whole = self.render(messages)
        if not whole.startswith(prompt):
            raise ConfigError(
                "The chat template renders a conversation that does not begin with its own prompt; "
                "an answer tuned on it would never match what the runtime asks.",
                "Use a template whose generation prompt is a prefix of the rendered answer.",
            )
        return prompt, whole[len(prompt) :]
