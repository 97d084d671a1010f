"""A model behind an OpenAI-compatible URL, which answers conversations and tells nothing else."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from edgekit.base.errors import ConfigError, StageError, reason
from edgekit.base.http import PASSING, NoRedirect
from edgekit.base.texts import one_line
from edgekit.data.rows import Message

TOKEN = "EDGEKIT_URL_TOKEN"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
LARGEST = 4 * 2**20
ANSWER_S = 300.0
TRIES = 4
FAILURES = (OSError, HTTPException, ValueError, LookupError, TypeError, RecursionError)
TOGETHER = 4  # requests at the same time
LONGEST_WAIT_S = 60.0


class Endpoint:
    """An opened endpoint. It is asked greedily, a few conversations at a time, and redirects are not followed.

    `url` ends before `/chat/completions`, as in `http://127.0.0.1:8000/v1`; `#name` after it names one of several models.
    Raises `ConfigError` when nothing answers there, or its models are not plain.
    """

    def __init__(self, url: str) -> None:
        hint = f"Give it as in http://127.0.0.1:8000/v1; a token is read from {TOKEN}."
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ConfigError(f"The address of the endpoint cannot be read: {error}.", hint) from error
        if not parts.hostname or parts.query or parts.username:
            raise ConfigError(
                f"{parts.scheme}://{parts.hostname or ''}{parts.path} with a query or a user is not the address of an endpoint.",
                hint,
            )
        self.name = "endpoint"
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        own = [ProxyHandler({})] if parts.hostname in LOOPBACK else []
        self._opener = build_opener(NoRedirect, *own)
        self.model = parts.fragment or self._only_model()

    def answers(self, conversations: Sequence[Sequence[Message]], max_tokens: int) -> list[str]:
        """The greedy answer to each conversation. Raises `StageError` when one is not answered."""
        with ThreadPoolExecutor(TOGETHER) as pool:
            return list(pool.map(lambda messages: self._answer(messages, max_tokens), conversations))

    def close(self) -> None:
        """Nothing is kept open."""

    def _answer(self, messages: Sequence[Message], max_tokens: int) -> str:
        asked = {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": False,
        }
        for left in reversed(range(TRIES)):
            try:
                return _text(self._send("chat/completions", asked))
            except HTTPError as error:
                with error:
                    if left and error.code in PASSING:
                        time.sleep(_wait(error, TRIES - left))
                        continue
                    raise StageError(
                        f"{self.url} refused a question: {_refusal(error)}", _hint(error.code)
                    ) from error
            except FAILURES as error:
                raise StageError(
                    f"{self.url} gave no answer: {_why(error)}.",
                    "Check the endpoint, and type the same command again: the answers so far are kept.",
                ) from error
        raise AssertionError("every try returns, raises or is followed by another")

    def _only_model(self) -> str:
        try:
            names = [str(one["id"]) for one in self._send("models")["data"]]
        except HTTPError as error:
            with error:
                raise ConfigError(
                    f"{self.url}/models: {_refusal(error)}. Nothing was started.",
                    _hint(error.code, f"Check the address, or name the model: {self.url}#NAME"),
                ) from error
        except FAILURES as error:
            raise ConfigError(
                f"{self.url} does not answer as an OpenAI-compatible endpoint: {_why(error)}. Nothing was started.",
                "Check the address; it usually ends in /v1, as in http://127.0.0.1:8000/v1.",
            ) from error
        if len(names) != 1:
            shown = ", ".join(map(one_line, names[:8])) or "none"
            raise ConfigError(
                f"{self.url} serves {len(names)} models: {shown}. Nothing was started.",
                f"Name one of them: {self.url}#NAME",
            )
        return names[0]

    def _send(self, path: str, document: dict[str, Any] | None = None) -> Any:
        """What the endpoint answers, as JSON."""
        headers = {"accept": "application/json", "user-agent": "edgekit"}
        if document is not None:
            headers["content-type"] = "application/json"
        if token := os.environ.get(TOKEN):
            headers["authorization"] = f"Bearer {token}"
        body = None if document is None else json.dumps(document).encode()
        request = Request(f"{self.url}/{path}", data=body, headers=headers)
        with self._opener.open(request, timeout=ANSWER_S) as answer:
            found = answer.read(LARGEST + 1)
        if len(found) > LARGEST:
            raise ValueError(f"it sent more than {LARGEST // 2**20} MiB")
        return json.loads(found)


def _text(document: Any) -> str:
    content = document["choices"][0]["message"]["content"]
    if not isinstance(content, str | None):
        raise TypeError("the content of its answer is not text")
    return (content or "").strip()


def _wait(error: HTTPError, tries: int) -> float:
    """Seconds until the next try: as the endpoint asks, else longer each time."""
    asked = error.headers.get("retry-after", "")
    return min(float(asked) if asked.isdecimal() else 0.5 * 2**tries, LONGEST_WAIT_S)


def _refusal(error: HTTPError) -> str:
    """The status, and what the endpoint says about it."""
    try:
        told = json.loads(error.read(65_536))
        said = one_line(str(told["error"]["message"] if isinstance(told["error"], dict) else told["error"]))
    except FAILURES:
        said = one_line(str(error.reason))
    return f"HTTP {error.code}, {said[:300].rstrip('.')}"


def _hint(status: int, otherwise: str = "") -> str:
    if status in (401, 403):
        return f"Set {TOKEN} to the token of the endpoint."
    return otherwise or "Change what is asked (--max-tokens), or the endpoint; the answers so far are kept."


def _why(error: Exception) -> str:
    """What went wrong, in words."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, LookupError | TypeError):
        return "its answer lacks what such an endpoint sends"
    if isinstance(cause, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return "its answer is not JSON"
    return one_line(reason(cause) if isinstance(cause, Exception) else str(cause)).rstrip(".")
