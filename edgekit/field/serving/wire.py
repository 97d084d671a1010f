"""The documents of OpenAI's API: checked request bodies, answers and errors.

Source: the API reference, <https://platform.openai.com/docs/api-reference/chat>. Fields that change nothing are
ignored; those that would change the answer and cannot be honoured are refused by name.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgekit.device.loaded import LoadedModel
from edgekit.field.serving import constrain
from edgekit.field.serving.engine import Request, Ticket
from edgekit.models.sampling import Sampling

# Unsupported fields, with the values that have no effect.
REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "echo": (False,),
    "suffix": ("",),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
}


class ApiError(Exception):
    """An answer that is an error, as OpenAI's clients read it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.document = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers beside the document."""
        return {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)

    type: str
    text: str = ""


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]

    def plain(self) -> dict[str, str]:
        """The message in the form of chat templates; raises `ApiError` for content that is not text."""
        extra = self.model_extra or {}
        if extra.get("tool_calls") or extra.get("function_call"):
            raise ApiError(400, "Tools are not supported.", param="messages", code="unsupported_value")
        text = self.content
        if not isinstance(text, str):
            other = next((part.type for part in text if part.type != "text"), None)
            if other:
                raise ApiError(
                    400,
                    f"Only text content is supported, not '{other}'.",
                    param="messages",
                    code="unsupported_value",
                )
            text = "".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class _JsonSchema(BaseModel):
    schema_: dict[str, Any] = Field(alias="schema")


class _ResponseFormat(BaseModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _JsonSchema | None = None


class _StreamOptions(BaseModel):
    include_usage: bool = False


_Stop = Annotated[str, Field(min_length=1, max_length=256)]


class Body(BaseModel):
    """The fields that both kinds of request have."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: int | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    response_format: _ResponseFormat | None = None
    choices: Annotated[list[_Stop], Field(min_length=1, max_length=1024)] | None = None
    """An extension of edgekit: the answer is one of these texts."""

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def request(self) -> Request:
        """The request for the engine; raises `ApiError` for unsupported fields."""
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        for name, value in (self.model_extra or {}).items():
            harmless = REFUSED.get(name)
            if value is None or harmless is None or any(_same(value, other) for other in harmless):
                continue
            raise ApiError(400, f"'{name}' is not supported.", param=name, code="unsupported_parameter")
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "max_tokens": self.max_tokens,
            "sampling": self._sampling(),
            "stop": tuple(stop),
            "grammar": self._grammar(),
        }

    def _sampling(self) -> Sampling:
        """Greedy, as the bundle was proven, unless a temperature is given."""
        if not self.temperature or self.top_p == 0:
            return Sampling()
        seed = secrets.randbits(31) if self.seed is None else self.seed
        return Sampling(self.temperature, 1.0 if self.top_p is None else self.top_p, seed)

    def _grammar(self) -> str | None:
        wanted = self.response_format
        if self.choices is not None:
            if wanted and wanted.type != "text":
                raise ApiError(400, "Use either 'choices' or 'response_format', not both.", param="choices")
            return constrain.of_choices(self.choices)
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return constrain.of_schema({"type": "object"})
        if wanted.json_schema is None:
            raise ApiError(400, "'response_format' has no 'json_schema'.", param="response_format")
        return constrain.of_schema(wanted.json_schema.schema_)


class ChatBody(Body):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None

    def request(self) -> Request:
        """The request for the engine; raises `ApiError` for unsupported fields."""
        messages = [message.plain() for message in self.messages]
        options = self._options()
        options["max_tokens"] = self.max_completion_tokens or self.max_tokens
        return Request(lambda model: model.prompt(messages), **options)


class CompletionBody(Body):
    """The body of `/v1/completions`; a prompt is text or token ids, alone or as the only one of a list."""

    prompt: str | list[str] | list[int] | list[list[int]]

    def request(self) -> Request:
        """The request for the engine; raises `ApiError` for unsupported fields."""
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise ApiError(
                    400,
                    "Only one prompt for each request is supported.",
                    param="prompt",
                    code="unsupported_value",
                )
            prompt = prompt[0]

        def ids(model: LoadedModel) -> Sequence[int]:
            return model.runtime.encode(prompt) if isinstance(prompt, str) else prompt  # type: ignore[return-value]

        return Request(ids, operation="text_completion", **self._options())


B = TypeVar("B", bound=Body)


def _same(value: Any, other: Any) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def parse(kind: type[B], data: bytes) -> B:
    """A body of `kind`; raises `ApiError` that names every fault, and never repeats what was sent."""
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        faults = [(".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors()]
        text = "; ".join(f"{place}: {message}" if place else message for place, message in faults)
        raise ApiError(400, text, param=faults[0][0].partition(".")[0] or None) from None


class Reply:
    """The documents of one answer: of a chat, or of a completion."""

    def __init__(self, model: str, chat: bool) -> None:
        self._chat = chat
        prefix, kind = ("chatcmpl", "chat.completion") if chat else ("cmpl", "text_completion")
        self._common = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        self._begun = False

    def whole(self, text: str, ticket: Ticket) -> dict[str, Any]:
        """The answer in one document."""
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self._chat
            else {"text": text}
        )
        return {
            **self._common,
            **_fingerprint(ticket),
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": ticket.finish}],
            "usage": usage(ticket),
            **_confidence(ticket),
        }

    def chunk(self, piece: str, ticket: Ticket, *, with_usage: bool, finish: str | None = None) -> bytes:
        """One event of a stream."""
        said: dict[str, Any] = {"text": piece}
        if self._chat:
            role = {} if self._begun else {"role": "assistant"}
            said = {"delta": {**role, "content": piece} if piece or not self._begun else {}}
            self._begun = True
        return self._event(
            ticket,
            [{"index": 0, **said, "logprobs": None, "finish_reason": finish}],
            ({"usage": None} if with_usage else {}) | (_confidence(ticket) if finish else {}),
        )

    def counts(self, ticket: Ticket) -> bytes:
        """The event with the token counts, after the last chunk."""
        return self._event(ticket, [], {"usage": usage(ticket)})

    def _event(self, ticket: Ticket, choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        kind = {"object": "chat.completion.chunk"} if self._chat else {}
        return event({**self._common, **kind, **_fingerprint(ticket), "choices": choices, **more})


def event(document: Any) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def usage(ticket: Ticket) -> dict[str, int]:
    """The token counts."""
    prompt, answer = ticket.prompt_tokens, ticket.answer_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def models(name: str, created: float) -> dict[str, Any]:
    """The list of the one model."""
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": int(created), "owned_by": "edgekit"}],
    }


def _confidence(ticket: Ticket) -> dict[str, Any]:
    """What is told of the answer where some are refused, a field that OpenAI's clients pass on unread."""
    return {"edgekit": ticket.verdict.fields} if ticket.verdict else {}


def _fingerprint(ticket: Ticket) -> dict[str, Any]:
    """The version that answered, which may change between two requests."""
    return {"system_fingerprint": f"fp_{ticket.release}" if ticket.release else None}
