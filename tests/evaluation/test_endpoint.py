"""A model behind a URL: it is asked greedily with the rows' messages, and what goes wrong is told, never the token."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from http_server import Server

from edgekit.base.errors import ConfigError, StageError
from edgekit.base.events import ignore
from edgekit.data.rows import Row
from edgekit.evaluation import endpoint
from edgekit.evaluation.accuracy import answer_rows
from edgekit.evaluation.endpoint import TOKEN, Endpoint
from edgekit.evaluation.kept import Kept
from edgekit.evaluation.task import Task, evaluate

ROWS = [
    Row(
        str(n),
        (
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": f"question {n}"},
            {"role": "assistant", "content": f"answer {n}"},
        ),
    )
    for n in range(30)
]
Reply = Callable[[dict[str, Any]], tuple[int, Any]]


class Fake:
    """An endpoint that answers every question rightly, unless `reply` is changed; `asked` keeps what came."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        self.models = ["small"]
        self.reply: Reply = lambda asked: (200, self.answer(asked))
        self.server = Server(self._answer)
        self.url = f"{self.server.url}/v1"

    @staticmethod
    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        text = asked["messages"][-1]["content"].replace("question", "answer")
        return {"choices": [{"message": {"role": "assistant", "content": f" {text}\n"}}]}

    def _answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        self.tokens.append(handler.headers.get("authorization"))
        if handler.path == "/v1/models":
            return 200, json.dumps({"data": [{"id": name} for name in self.models]}).encode()
        if handler.path != "/v1/chat/completions":
            return 404, b"{}"
        asked = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        self.asked.append(asked)
        status, document = self.reply(asked)
        return status, document if isinstance(document, bytes) else json.dumps(document).encode()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setattr("time.sleep", lambda _: None)
    found = Fake()
    yield found
    found.server.close()


def test_rows_are_asked_greedily_and_in_their_order(fake: Fake, tmp_path: Path) -> None:
    found = evaluate(Endpoint(fake.url), ROWS, Task(9), log=tmp_path / "log", kept=None, emit=ignore)
    assert found["accuracy"] == 1 and found["n"] == 30 == len(fake.asked)
    one = next(asked for asked in fake.asked if asked["messages"][-1]["content"] == "question 3")
    assert one == {
        "model": "small",
        "messages": [dict(message) for message in ROWS[3].messages[:-1]],
        "max_tokens": 9,
        "temperature": 0,
        "stream": False,
    }
    first = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert json.loads(first["prompt"]) == one["messages"][:1] + [{"role": "user", "content": "question 0"}]


def test_a_wrong_answer_is_wrong_and_no_content_is_an_empty_one(fake: Fake) -> None:
    def reply(asked: dict[str, Any]) -> tuple[int, Any]:
        text = asked["messages"][-1]["content"]
        return 200, {"choices": [{"message": {"content": None}}]} if text.endswith("7") else fake.answer(
            asked
        )

    fake.reply = reply
    samples = answer_rows(Endpoint(fake.url), ROWS, max_tokens=9, emit=ignore, stage="eval")
    assert [sample["id"] for sample in samples if not sample["correct"]] == ["7", "17", "27"]
    assert samples[7]["answer"] == ""


def test_an_endpoint_that_is_busy_is_asked_again_and_one_that_fails_is_told(
    fake: Fake, tmp_path: Path
) -> None:
    count = 0

    def busy(asked: dict[str, Any]) -> tuple[int, Any]:
        nonlocal count
        count += 1
        return (503, {}) if count % 2 else (200, fake.answer(asked))

    fake.reply = busy
    assert Endpoint(fake.url).answers([ROWS[0].messages[:-1]], 9) == ["answer 0"] and count == 2
    fake.reply = lambda asked: (503, {"error": {"message": "Too many\nrequests."}})
    fake.asked.clear()
    with pytest.raises(StageError, match="HTTP 503, Too many requests") as caught:
        Endpoint(fake.url).answers([ROWS[0].messages[:-1]], 9)
    assert len(fake.asked) == endpoint.TRIES and "kept" in caught.value.hint
    fake.reply = lambda asked: (400, {"error": "max_tokens is too large"})
    fake.asked.clear()
    with pytest.raises(StageError, match="HTTP 400, max_tokens is too large"):
        Endpoint(fake.url).answers([ROWS[0].messages[:-1]], 9)
    assert len(fake.asked) == 1


def test_answers_before_a_failure_are_kept(fake: Fake, tmp_path: Path) -> None:
    fake.reply = lambda asked: (
        (401, {"error": {"message": "no"}})
        if asked["messages"][-1]["content"] == "question 27"
        else (200, fake.answer(asked))
    )
    kept = Kept(tmp_path / "log", "digest", ignore)
    with pytest.raises(StageError) as caught:
        answer_rows(Endpoint(fake.url), ROWS, max_tokens=9, emit=ignore, stage="eval", kept=kept)
    assert TOKEN in caught.value.hint
    fake.reply = lambda asked: (200, fake.answer(asked))
    fake.asked.clear()
    again = Kept(tmp_path / "log", "digest", ignore)
    samples = answer_rows(Endpoint(fake.url), ROWS, max_tokens=9, emit=ignore, stage="eval", kept=again)
    assert all(sample["correct"] for sample in samples) and len(fake.asked) == 6


@pytest.mark.parametrize(
    "document", [b"<html>", {"choices": []}, {"choices": [{"message": {"content": 3}}]}, [], b"[" * 9000]
)
def test_what_is_no_answer_is_told(fake: Fake, document: Any) -> None:
    fake.reply = lambda asked: (200, document)
    with pytest.raises(StageError, match="gave no answer: its answer"):
        Endpoint(fake.url).answers([ROWS[0].messages[:-1]], 9)


def test_the_model_is_the_only_one_or_the_one_that_is_named(fake: Fake) -> None:
    assert Endpoint(f"{fake.url}/").model == "small" and Endpoint(f"{fake.url}#other").model == "other"
    fake.models = ["small", "large"]
    with pytest.raises(ConfigError, match="serves 2 models: small, large") as caught:
        Endpoint(fake.url)
    assert f"{fake.url}#NAME" in caught.value.hint
    with pytest.raises(ConfigError, match="HTTP 404") as caught:
        Endpoint(fake.server.url)
    assert "#NAME" in caught.value.hint


def test_an_address_where_nobody_answers_is_told(fake: Fake) -> None:
    fake.server.close()
    with pytest.raises(
        ConfigError, match="does not answer as an OpenAI-compatible endpoint: Connection refused"
    ):
        Endpoint(fake.url)
    with pytest.raises(ConfigError, match="not the address of an endpoint") as caught:
        Endpoint("http://me:secret@127.0.0.1/v1?key=secret")
    assert "127.0.0.1/v1" in caught.value.message and "secret" not in caught.value.message


def test_a_token_goes_to_the_endpoint_alone(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    Endpoint(fake.url)
    assert fake.tokens == [None]
    monkeypatch.setenv(TOKEN, "secret")
    Endpoint(fake.url).answers([ROWS[0].messages[:-1]], 9)
    assert fake.tokens[1:] == ["Bearer secret"] * 2
    other = Fake()

    def moved(handler: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        handler.send_response_only(302)
        handler.send_header("location", f"{other.url}/models")
        handler.send_header("content-length", "0")
        handler.end_headers()
        return None  # type: ignore[return-value]

    server = Server(moved)
    try:
        with pytest.raises(ConfigError, match="HTTP 302"):
            Endpoint(f"{server.url}/v1")
    finally:
        server.close()
        other.server.close()
    assert other.tokens == []


def test_what_needs_likelihoods_or_tokens_is_refused(fake: Fake, tmp_path: Path) -> None:
    from edgekit.evaluation.few_shot import prepare

    with pytest.raises(ConfigError, match="no likelihoods"):
        evaluate(
            Endpoint(fake.url), ROWS, Task(labels=("a", "b")), log=tmp_path / "log", kept=None, emit=ignore
        )
    with pytest.raises(ConfigError, match="shows no tokens"):
        prepare(Endpoint(fake.url), ROWS, ROWS, 9)
    assert fake.asked == []
