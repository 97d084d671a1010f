"""Connections that ask nothing, or too slowly, or are too many, keep nobody from an answer."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from field.serving.scripted import Running

from edgekit.field.serving.connections import ConnectionLimits

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for one in opened:
        one.close()


def connect(running: Running) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def asked(running: Running, request: bytes = HEALTH) -> bytes:
    """All that the server answers, on a connection of its own; nothing where it is closed at once."""
    answer = b""
    with connect(running) as one, contextlib.suppress(ConnectionError):
        one.sendall(request)
        while part := one.recv(65536):
            answer += part
    return answer


def is_closed(one: socket.socket, within_s: float) -> bool:
    """Whether the server ends the connection in time; what it still had to say is read."""
    one.settimeout(within_s)
    try:
        while one.recv(65536):
            pass
        return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_many_idle_connections_are_closed_for_those_that_ask(
    scripted: Callable[..., Running], sockets: list[socket.socket]
) -> None:
    running = scripted(token="secret", limits=ConnectionLimits(most=8, for_health=2))
    for _ in range(200):
        sockets.append(connect(running))
    assert asked(running).startswith(b"HTTP/1.1 200")
    with running.client(headers={"authorization": "Bearer secret"}) as client:
        assert running.ask("hello", client).status_code == 200
    assert len(running.server.server_state.connections) <= 10
    assert all(is_closed(one, 10) for one in sockets[:150])


def test_a_connection_that_never_sends_a_whole_head_is_closed(
    scripted: Callable[..., Running], sockets: list[socket.socket]
) -> None:
    running = scripted(limits=ConnectionLimits(head_s=1.0))
    silent, slow, second = (connect(running) for _ in range(3))
    sockets += [silent, slow, second]
    slow.sendall(b"GET /healthz HTTP/1.1\r\n")
    second.sendall(HEALTH.replace(b"connection: close\r\n", b""))
    assert second.recv(65536).startswith(b"HTTP/1.1 200")
    second.sendall(b"GET /hea")  # the next request on it
    assert all(is_closed(one, 10) for one in sockets)


def test_a_long_answer_and_a_kept_connection_outlive_the_time_for_a_head(
    scripted: Callable[..., Running],
) -> None:
    running = scripted(gated=True, limits=ConnectionLimits(head_s=1.0))
    with running.send("hello") as one:
        assert running.runtime.began.acquire(timeout=10)
        time.sleep(1.5)
        running.runtime.gate.release(100)
        told = one.recv(65536)
        time.sleep(1.5)
        one.sendall(HEALTH)
        while part := one.recv(65536):
            told += part
        assert told.count(b"HTTP/1.1 200 OK") == 2


def test_when_every_connection_is_answering_health_is_told_and_others_are_refused(
    scripted: Callable[..., Running], sockets: list[socket.socket]
) -> None:
    running = scripted(gated=True, queue_size=8, limits=ConnectionLimits(most=3, for_health=2))
    sockets += [running.send("hello") for _ in range(3)]
    end = time.monotonic() + 10
    while running.engine.waiting + running.engine.running < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert asked(running).startswith(b"HTTP/1.1 200")
    refused = asked(running, HEALTH.replace(b"/healthz", b"/v1/models"))
    assert refused.startswith(b"HTTP/1.1 503") and b"retry-after" in refused.lower()
    assert b"Too many connections" in refused and asked(running).startswith(b"HTTP/1.1 200")
    running.runtime.gate.release(1000)
    assert all(one.recv(65536).startswith(b"HTTP/1.1 200") for one in sockets)
    assert asked(running, HEALTH.replace(b"/healthz", b"/v1/models")).startswith(b"HTTP/1.1 200")
