"""Limits the connections of the server, before it reads any request.

At most `most` connections are served. A new one beyond that closes the connection that has been idle longest. When none
is idle, a few more are accepted for health checks only, so that a supervisor always gets an answer. A connection that
does not send a whole request head in time is closed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgekit.field.serving.guard import OPEN
from edgekit.field.serving.wire import ApiError

RETRY_AFTER_S = 5


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections may be open, and how long one may take to send the head of a request, in seconds."""

    most: int = 256
    for_health: int = 16
    """Further connections, on which only health checks are answered."""
    head_s: float = 20.0


def protocol(limits: ConnectionLimits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 protocol under `limits`."""
    return type("LimitedConnection", (Connection,), {"limits": limits})


class Connection(H11Protocol):
    """One connection; `limits` holds for all connections of a server together."""

    limits = ConnectionLimits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection; when there are too many, close the one that has been idle longest."""
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self._head_timer: asyncio.TimerHandle | None = None
        self._wait_for_head()
        others = [cast(Connection, one) for one in self.connections if one is not self]
        open_ = [one for one in others if not one.transport.is_closing()]
        if len(open_) < self.limits.most:
            return
        idle = [one for one in open_ if not one.answering]
        if idle:
            min(idle, key=lambda one: one.idle_since).transport.abort()
        elif len(open_) < self.limits.most + self.limits.for_health:
            self.app = _HealthOnly(self.app)
        else:
            transport.abort()

    @property
    def answering(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Receive bytes; the time limit of a request head also holds for a client that sends single bytes."""
        super().data_received(data)
        if self.answering:
            self._stop_head_timer()
        elif self.timeout_keep_alive_task is None:
            self._wait_for_head()

    def on_response_complete(self) -> None:
        """Count the connection as idle from now on."""
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self.answering and not self.transport.is_closing():
            self.transport.abort()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _HealthOnly:
    """The application on a connection beyond the limit: health checks pass, everything else is refused."""

    def __init__(self, app: Any) -> None:
        self._app: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        error = ApiError(
            503,
            "Too many connections are open. Try again later.",
            kind="server_error",
            code="service_unavailable",
            retry_after_s=RETRY_AFTER_S,
        )
        headers = {**(error.headers or {}), "connection": "close"}
        await JSONResponse(error.document, error.status, headers)(scope, receive, send)
