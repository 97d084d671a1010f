"""The endpoint as OpenAI's clients and plain HTTP see it, through a real server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from field.serving.scripted import NO_TLS, Running

import edgekit
from edgekit.field.serving.api import BODY_BYTES
from edgekit.models.sampling import Sampling

QUESTIONS = [f"Log {n} hours on job {n * 37 % 101} at hall {n % 7}." for n in range(50)]


@pytest.fixture(scope="module")
def own_answers(tiny_build: Any) -> dict[str, str]:
    """The bundle's own answers, from `edgekit.load`, each with a seed of its own so that no two are alike."""
    with edgekit.load(tiny_build.bundle, "gguf", threads=1) as model:
        return {
            question: model.generate(question, max_tokens=12, sampling=Sampling(1.5, 1.0, seed))
            for seed, question in enumerate(QUESTIONS)
        }


def drawn(question: str) -> dict[str, Any]:
    """What makes the server draw as `own_answers` did."""
    return {"max_tokens": 12, "temperature": 1.5, "seed": QUESTIONS.index(question)}


def openai_client(running: Running, **options: Any) -> openai.OpenAI:
    http = httpx.Client(trust_env=False, verify=NO_TLS)
    return openai.OpenAI(
        base_url=f"{running.url}/v1", api_key="none", max_retries=0, http_client=http, **options
    )


def test_openais_client_is_answered_as_the_bundle_answers(tiny: Running, own_answers: dict[str, str]) -> None:
    client, question = openai_client(tiny), QUESTIONS[3]
    messages: Any = [{"role": "user", "content": question}]
    whole = client.chat.completions.create(model="tiny", messages=messages, **drawn(question))
    assert whole.choices[0].message.content == own_answers[question]
    assert whole.choices[0].finish_reason in ("stop", "length")
    assert whole.system_fingerprint == f"fp_{tiny.engine.release}" and len(tiny.engine.release) == 12
    assert whole.usage and whole.usage.completion_tokens <= 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens

    stream = client.chat.completions.create(
        model="tiny",
        messages=messages,
        **drawn(question),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == own_answers[question]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "edgekit"


def test_completions_take_text_or_ids(tiny: Running) -> None:
    client = openai_client(tiny)
    text = client.completions.create(model="tiny", prompt="Hall 12 shows", max_tokens=8)
    ids = tiny.runtime.encode("Hall 12 shows")
    assert (
        text.choices[0].text
        == client.completions.create(model="tiny", prompt=ids, max_tokens=8).choices[0].text
    )
    assert text.usage and text.usage.prompt_tokens == len(ids)
    chunks = list(
        client.completions.create(model="tiny", prompt=["Hall 12 shows"], max_tokens=8, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == text.choices[0].text
    with pytest.raises(openai.BadRequestError, match="token ids below"):
        client.completions.create(model="tiny", prompt=[10**6], max_tokens=8)


def test_fifty_clients_at_once_each_get_their_own_answer(tiny: Running, own_answers: dict[str, str]) -> None:
    def ask(question: str) -> str:
        if question in QUESTIONS[::2]:
            return tiny.ask(question, **drawn(question)).json()["choices"][0]["message"]["content"]
        pieces = openai_client(tiny).chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": question}], stream=True, **drawn(question)
        )
        return "".join(piece.choices[0].delta.content or "" for piece in pieces)

    with ThreadPoolExecutor(50) as pool:
        answers = dict(zip(QUESTIONS, pool.map(ask, QUESTIONS), strict=True))
    assert answers == own_answers and len(set(own_answers.values())) == 50
    assert len(tiny.seen) == 50 and all(seen.release == tiny.engine.release for seen in tiny.seen)
    assert max(seen.queue_s for seen in tiny.seen) > 0


def test_a_seed_makes_an_answer_repeatable(tiny: Running) -> None:
    def ask(seed: int | None) -> str:
        answer = tiny.ask("Go", temperature=1.5, seed=seed, max_tokens=12).json()
        return str(answer["choices"][0]["message"]["content"])

    assert ask(1) == ask(1)
    assert len({ask(None) for _ in range(4)}) > 1
    assert (
        tiny.ask("Go", temperature=0, max_tokens=12).json()["choices"]
        == tiny.ask("Go", max_tokens=12).json()["choices"]
    )


@pytest.mark.parametrize("stop", ["STOP", ["xyz", "STOP"]])
def test_a_stop_string_ends_the_answer_also_across_pieces(scripted: Any, stop: Any) -> None:
    running = scripted(lambda text: "one STAR two STOP three")
    answer = running.ask("Go", stop=stop).json()
    assert answer["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "one STAR two ", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert answer["usage"]["completion_tokens"] == len("one STAR two STOP")
    assert [(seen.finish, seen.error) for seen in running.seen] == [("stop", None)]
    held = running.ask("Go", stop="threex").json()["choices"][0]
    assert held["message"]["content"] == "one STAR two STOP three"


def test_a_stream_is_plain_server_sent_events(scripted: Any) -> None:
    running = scripted(lambda text: "dé🚀")
    response = running.ask("Go", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""] and all(event.startswith("data: ") for event in events[:-1])
    chunks = [json.loads(event[6:]) for event in events[:-2]]
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["d", "é", "🚀", None]
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"} and len({c["id"] for c in chunks}) == 1
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and "usage" not in chunks[0]
    empty = scripted(lambda text: "").ask("Go", stream=True).text
    assert '"finish_reason":"stop"' in empty and empty.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"max_tokens": 100_000}, None),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stop": [""]}, "stop"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"choices": []}, "choices"),
        ({"choices": ["a"], "response_format": {"type": "json_object"}}, "choices"),
        ({"choices": ["a"]}, None),  # a scripted model has no tokenizer.json
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, None),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    scripted: Any, body: dict[str, Any], param: str | None
) -> None:
    running = scripted()
    response = running.ask("Go", **body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"] and error["param"] == param
    assert running.ask("Go").status_code == 200  # it goes on
    assert [seen.finish for seen in running.seen] == ["stop"]  # a wrong request is no fault of the model
    with running.client() as client:
        assert 'edgekit_refused_requests_total{reason="invalid"} 1.0' in client.get("/metrics").text


def test_harmless_fields_are_ignored_and_parts_of_text_are_joined(scripted: Any) -> None:
    running = scripted()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    harmless = {
        "user": "me",
        "n": 1,
        "logprobs": False,
        "tools": [],
        "store": True,
        "stop": None,
        "presence_penalty": 0.0,
    }
    response = running.ask("", messages=[{"role": "user", "content": parts, "name": "x"}], **harmless)
    assert response.json()["choices"][0]["message"]["content"] == "ab"


def test_http_is_held_to_its_limits(scripted: Any) -> None:
    running = scripted()
    with running.client() as client:
        path, json_type = "/v1/chat/completions", {"content-type": "application/json"}
        for broken in (
            b"{",
            b"[]",
            b"\xff",
            b'{"messages": "x"}',
            b"[" * 50_000,
            b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        ):
            response = client.post(path, content=broken, headers=json_type)
            assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"
        assert client.post(path, content=b"x" * (BODY_BYTES + 1), headers=json_type).status_code == 413
        chunked = (b"x" * 65536 for _ in range(BODY_BYTES // 65536 + 2))
        assert client.post(path, content=chunked, headers=json_type).status_code == 413
        assert client.post(path, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
        assert client.get(path).status_code == 405 and client.get("/v2").json()["error"]["message"]
        assert client.get("/v1/models/other").status_code == 404
        assert running.ask("Go", client, model="other").json()["error"]["code"] == "model_not_found"
        assert (
            "access-control-allow-origin" not in client.options(path, headers={"origin": "http://a"}).headers
        )
        # a name that was made to resolve here (DNS rebinding)
        assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
        assert client.get("/v1/models", headers={"host": "localhost:1234"}).status_code == 200
        assert client.get("/healthz").text == "ok\n" and client.get("/readyz").status_code == 200
        told = client.get("/metrics").text
        assert 'reason="too_large"} 2.0' in told and 'reason="other_host"} 1.0' in told
    assert running.seen == []


def test_a_token_is_asked_for_everywhere_but_for_health(scripted: Any) -> None:
    running = scripted(token="geheim")
    with running.client() as client:
        for headers in ({}, {"authorization": "Bearer falsch"}, {"authorization": "Basic geheim"}):
            for path in ("/v1/models", "/metrics", "/nothing"):
                response = client.get(path, headers=headers)
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert running.ask("Go", client).status_code == 401
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        named = {"host": "device.local", "authorization": "Bearer geheim"}
        assert client.get("/v1/models", headers=named).status_code == 200
        assert 'reason="unauthorized"} 12.0' in client.get("/metrics", headers=named).text
