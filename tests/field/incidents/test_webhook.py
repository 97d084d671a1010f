"""The webhook against real receivers on this machine: good, failing, slow, hanging, lying and absent ones."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from edgekit.base.errors import ConfigError
from edgekit.field.incidents.webhook import SECRET, Webhook


class Receiver:
    """An HTTP server that answers with `codes` in turn, the last one for good, and keeps what it is sent."""

    def __init__(self, codes: list[int]) -> None:
        self.codes = codes
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.go_on = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.received.append((dict(self.headers), body))
                code = receiver.codes[min(len(receiver.received), len(receiver.codes)) - 1]
                if not code:  # hang
                    receiver.go_on.wait(20)
                    return
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                receiver.received.append(({"method": "GET"}, b""))

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Receiver]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made: list[Receiver] = []

    def make(*codes: int) -> Receiver:
        made.append(Receiver(list(codes)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_a_change_arrives_signed(receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "open sesame")
    there = receiver(200)
    webhook = Webhook(there.url)
    webhook.send({"incident": 1, "what": "Größe"})
    wait_for(lambda: webhook.delivered == 1)
    headers, body = there.received[0]
    assert json.loads(body) == {"incident": 1, "what": "Größe"}
    stamp = headers["X-Edgekit-Timestamp"]
    expected = hmac.new(b"open sesame", f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["X-Edgekit-Signature"] == f"sha256={expected}"
    webhook.close()


def test_a_failing_receiver_is_tried_again_with_the_same_delivery(receiver: Callable[..., Receiver]) -> None:
    there = receiver(503, 500, 200)
    webhook = Webhook(there.url, backoff_s=0.01)
    webhook.send({"incident": 1})
    wait_for(lambda: webhook.delivered == 1)
    assert len({headers["X-Edgekit-Delivery"] for headers, _ in there.received}) == 1
    assert len(there.received) == 3 and "X-Edgekit-Signature" not in there.received[0][0]
    webhook.close()


@pytest.mark.parametrize(("code", "posts"), [(404, 1), (302, 1), (500, 3)])
def test_what_does_not_help_is_not_repeated_and_the_next_one_goes_on(
    receiver: Callable[..., Receiver], code: int, posts: int
) -> None:
    there = receiver(*[code] * posts, 200)
    webhook = Webhook(there.url, tries=3, backoff_s=0.01)
    webhook.send({"incident": 1})
    webhook.send({"incident": 2})
    wait_for(lambda: webhook.delivered == 1)
    assert webhook.failed == 1 and str(code) in webhook.trouble
    assert [json.loads(body)["incident"] for _, body in there.received] == [1] * posts + [2]
    webhook.close()


def test_a_receiver_that_hangs_holds_up_nobody(receiver: Callable[..., Receiver]) -> None:
    there = receiver(0, 0, 200)
    webhook = Webhook(there.url, timeout_s=0.2, tries=2, backoff_s=0.01)
    for number in range(200):  # more than wait: returns at once for each
        webhook.send({"incident": number})
    assert webhook.dropped >= 200 - 64 - 2
    wait_for(lambda: webhook.failed >= 1 and webhook.delivered >= 1)
    webhook.close()


def test_nobody_there(receiver: Callable[..., Receiver]) -> None:
    there = receiver(200)
    there.server.server_close()
    webhook = Webhook(there.url, timeout_s=0.2, tries=2, backoff_s=0.01)
    webhook.send({"incident": 1})
    wait_for(lambda: webhook.failed == 1)
    webhook.send({"incident": object()})
    wait_for(lambda: webhook.failed == 2)
    webhook.close()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/x", "example.org", "http://", ""])
def test_only_http_addresses_are_taken(url: str) -> None:
    with pytest.raises(ConfigError, match="not a webhook address"):
        Webhook(url)
