"""One answer after another: who waits, who goes away, what fails, what is put in its place, and how it ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from field.serving.scripted import Running, Scripted

from edgekit.base.errors import StageError
from edgekit.device.loaded import LoadedModel


def until(condition: Any) -> None:
    """Wait for something that comes soon."""
    tick = threading.Event()
    for _ in range(2000):
        if condition():
            return
        tick.wait(0.005)
    raise AssertionError("it never came")


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(32) as pool:
        yield pool


def test_a_full_queue_is_told_with_a_time_to_come_back(scripted: Any, pool: Any) -> None:
    running: Running = scripted(gated=True, queue_size=2)
    first = pool.submit(running.ask, "first")
    assert running.runtime.began.acquire(timeout=10)
    waiting = [pool.submit(running.ask, text) for text in ("second", "third")]
    until(lambda: running.engine.waiting == 2)
    refused = running.ask("fourth")
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    with running.client() as client:
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
        told = client.get("/metrics").text
    assert "edgekit_queue_length 2.0" in told and "edgekit_requests_running 1.0" in told
    assert 'edgekit_refused_requests_total{reason="queue_full"} 1.0' in told
    running.runtime.gate.release(1000)
    assert [text_of(asked.result()) for asked in (first, *waiting)] == ["first", "second", "third"]
    assert text_of(running.ask("fourth")) == "fourth"


@pytest.mark.parametrize("stream", [True, False])
def test_a_reader_that_goes_away_ends_its_answer_at_the_next_token(scripted: Any, stream: bool) -> None:
    running: Running = scripted(lambda text: text * 10, gated=True)
    reader = running.send("abc", stream=stream)
    assert running.runtime.began.acquire(timeout=10)
    running.runtime.gate.release(3)
    until(lambda: running.runtime.made == 3)
    reader.close()
    until(lambda: _gone(running))
    running.runtime.gate.release(1000)
    assert text_of(running.ask("next")) == "next" * 10
    assert [(seen.finish, seen.error) for seen in running.seen] == [("cancelled", None), ("stop", None)]
    assert running.seen[0].answer_tokens == 3


def test_one_that_goes_away_while_it_waits_makes_room(scripted: Any, pool: Any) -> None:
    running: Running = scripted(gated=True, queue_size=1)
    first = pool.submit(running.ask, "first")
    assert running.runtime.began.acquire(timeout=10)
    leaves = running.send("leaves")
    until(lambda: running.engine.waiting == 1)
    leaves.close()
    until(lambda: running.engine.waiting == 0)
    running.runtime.gate.release(1000)
    assert text_of(first.result()) == "first"
    assert len(running.seen) == 1


def test_a_time_limit_ends_with_what_there_is(scripted: Any, pool: Any) -> None:
    running: Running = scripted(gated=True, timeout_s=0.3)
    begun = pool.submit(running.ask, "a long answer")
    assert running.runtime.began.acquire(timeout=10)
    running.runtime.gate.release(4)
    waits = pool.submit(running.ask, "never begun")
    refused = waits.result()  # its time ends in the queue
    assert refused.status_code == 504 and refused.json()["error"]["code"] == "timeout"
    running.runtime.gate.release(1)
    choice = begun.result().json()["choices"][0]
    assert choice["message"]["content"] == "a lo" and choice["finish_reason"] == "length"
    seen = [(seen.finish, seen.answer_tokens, seen.error) for seen in running.seen]
    assert seen == [("error", 0, "TimeUp"), ("length", 4, None)]


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_of_one_answer_is_that_requests_alone(scripted: Any, stream: bool) -> None:
    def reply(text: str) -> str:
        if "fails" in text:
            raise StageError("The arithmetic broke.")
        if "odd" in text:
            raise RuntimeError("secret words of the prompt")
        return text

    running: Running = scripted(reply)
    failed = running.ask("fails", stream=stream)
    assert failed.status_code == 500 and failed.json()["error"]["message"] == "The arithmetic broke."
    odd = running.ask("odd", stream=stream)
    assert odd.status_code == 500 and "RuntimeError" in odd.text and "secret" not in odd.text
    assert text_of(running.ask("fine")) == "fine"
    assert [(seen.finish, seen.error) for seen in running.seen] == [
        ("error", "StageError"), ("error", "RuntimeError"), ("stop", None),
    ]  # fmt: skip


def test_an_error_after_the_first_words_comes_in_the_stream(scripted: Any) -> None:
    running: Running = scripted(lambda text: text)
    process = running.runtime.decode

    def decode(ids: Any) -> str:
        if len(ids) > 1 and ids[-1] == ord("!"):
            raise StageError("The arithmetic broke.")
        return str(process(ids))

    running.runtime.decode = decode
    events = running.ask("abc!", stream=True).text
    assert '"content":"c"' in events and "The arithmetic broke." in events and "[DONE]" not in events


def test_a_swap_under_load_loses_nothing(scripted: Any, pool: Any) -> None:
    new = Scripted(lambda text: f"new {text}")
    running: Running = scripted(lambda text: f"old {text}", gated=True, release="1")
    old = running.runtime
    first = pool.submit(running.ask, "0")
    assert old.began.acquire(timeout=10)
    waiting = [pool.submit(running.ask, str(n)) for n in range(1, 20)]
    until(lambda: running.engine.waiting == 19)
    replacement = LoadedModel(new, format="gguf", max_tokens=64)  # type: ignore[arg-type]
    swapped = pool.submit(running.engine.swap, replacement, release="2")
    until(lambda: running.engine._incoming is not None)
    assert not old.closed.is_set()
    old.gate.release(1000)
    assert first.result().json()["system_fingerprint"] == "fp_1" and text_of(first.result()) == "old 0"
    swapped.result()
    answers = [asked.result() for asked in waiting]
    assert [text_of(answer) for answer in answers] == [f"new {n}" for n in range(1, 20)]
    assert {answer.json()["system_fingerprint"] for answer in answers} == {"fp_2"}
    assert old.closed.wait(10) and not new.closed.is_set()
    again = Scripted(lambda text: "third")
    running.engine.swap(LoadedModel(again, format="gguf"), release="3")  # type: ignore[arg-type]
    assert text_of(running.ask("x")) == "third" and new.closed.wait(10)


def test_a_swap_from_a_bad_release_waits_no_longer_than_it_is_given(scripted: Any, pool: Any) -> None:
    running: Running = scripted(lambda text: "old", gated=True, release="1")
    first = pool.submit(running.ask, "0")
    assert running.runtime.began.acquire(timeout=10)
    replacement = LoadedModel(Scripted(lambda text: f"new {text}"), format="gguf")  # type: ignore[arg-type]
    swapped = pool.submit(running.engine.swap, replacement, release="2", grace_s=0.05)
    until(lambda: running.engine._running and running.engine._running.ending)
    running.runtime.gate.release(1)  # it ends before the next token, and the asker is told to come again
    refused = first.result()
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
    swapped.result()
    assert text_of(running.ask("1")) == "new 1" and running.runtime.closed.wait(10)


def test_draining_finishes_what_was_accepted_and_refuses_the_rest(scripted: Any, pool: Any) -> None:
    running: Running = scripted(gated=True)
    accepted = [pool.submit(running.ask, text) for text in ("one", "two")]
    assert running.runtime.began.acquire(timeout=10)
    until(lambda: running.engine.waiting == 1)
    with running.client() as client:
        assert client.get("/readyz").status_code == 200
        drained = pool.submit(running.engine.drain, 20)
        until(lambda: client.get("/readyz").status_code == 503)
        refused = running.ask("three", client)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200
    assert not drained.done()
    running.runtime.gate.release(1000)
    assert drained.result() is True
    assert sorted(text_of(asked.result()) for asked in accepted) == ["one", "two"]


def test_what_cannot_be_finished_in_time_is_told_so(scripted: Any, pool: Any) -> None:
    running: Running = scripted(gated=True)
    accepted = [pool.submit(running.ask, text) for text in ("one", "two")]
    assert running.runtime.began.acquire(timeout=10)
    until(lambda: running.engine.waiting == 1)
    assert running.engine.drain(0.05) is False
    running.runtime.gate.release(1000)
    for asked in accepted:
        assert asked.result().status_code == 503 and asked.result().headers["retry-after"]


def _gone(running: Running) -> bool:
    ticket = running.engine._running
    return ticket is None or ticket.ending == "cancelled"
