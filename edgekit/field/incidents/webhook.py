"""Webhook: sends each change as JSON to a URL that the operator names, in a thread of its own.

A slow, missing or faulty receiver does no harm: deliveries wait in a bounded queue and are dropped after a few tries.
With a secret, each delivery is signed, so that the receiver can verify the sender.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from edgekit.base.errors import ConfigError
from edgekit.base.http import PASSING, NoRedirect

SECRET = "EDGEKIT_WEBHOOK_SECRET"
QUEUE = 64


class Webhook:
    """Delivers documents to one http(s) address.

    Headers: `X-Edgekit-Delivery` (the same for each try), `X-Edgekit-Timestamp` and, with a secret, `X-Edgekit-Signature`:
    `sha256=` and the hex HMAC-SHA256 of the timestamp, a full stop and the body. `delivered`, `failed` and `dropped` count
    documents; `trouble` says why the last one failed. Raises `ConfigError` for an address of another kind.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | None = None,
        timeout_s: float = 5.0,
        tries: int = 4,
        backoff_s: float = 1.0,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"'{url}' is not a webhook address.", "Give a URL that begins with https:// or http://."
            )
        self.url = url
        self.timeout_s, self.tries, self.backoff_s = timeout_s, tries, backoff_s
        self.delivered = self.failed = self.dropped = 0
        self.trouble = ""
        self._secret = (secret or os.environ.get(SECRET, "")).encode()
        self._opener = urllib.request.build_opener(NoRedirect)
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(QUEUE)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def send(self, document: Mapping[str, Any]) -> None:
        """Queue `document` for delivery; returns at once and never raises. When the queue is full, it is dropped."""
        try:
            self._queue.put_nowait(dict(document))
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float = 2.0) -> None:
        """Deliver the queue within `timeout_s`, without retries, and stop."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            try:
                document = self._queue.get(timeout=0.2)
            except queue.Empty:
                if self._closing.is_set():
                    return
                continue
            if document is None:
                return
            try:
                done = self._deliver(json.dumps(document, ensure_ascii=False, default=str).encode())
            except Exception as error:  # noqa: BLE001 - one document must not end this thread
                done, self.trouble = False, f"{type(error).__name__}: {error}"
            self.delivered += done
            self.failed += not done

    def _deliver(self, body: bytes) -> bool:
        delivery = uuid.uuid4().hex
        for number in range(self.tries):
            if number and self._closing.wait(self.backoff_s * 2 ** (number - 1)):
                return False
            again = self._post(body, delivery)
            if again is None:
                return True
            if not again:
                return False
        return False

    def _post(self, body: bytes, delivery: str) -> bool | None:
        """None when it was accepted, else whether a retry may help."""
        stamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "edgekit",
            "X-Edgekit-Delivery": delivery,
            "X-Edgekit-Timestamp": stamp,
        }
        if self._secret:
            headers["X-Edgekit-Signature"] = "sha256=" + signature(self._secret, stamp, body)
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.timeout_s):
                return None
        except urllib.error.HTTPError as error:
            error.close()
            self.trouble = f"{self.url} answered {error.code}"
            return error.code in PASSING
        except (OSError, HTTPException) as error:  # refused, no name, no route, too slow
            self.trouble = f"{self.url}: {getattr(error, 'reason', None) or error}"
            return True


def signature(secret: bytes, timestamp: str, body: bytes) -> str:
    """The hex HMAC-SHA256 of `timestamp`, a full stop and `body`; a receiver computes the same and compares."""
    return hmac.new(secret, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
