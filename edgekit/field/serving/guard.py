"""Access control: a bearer token, or requests to this machine's loopback names only."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from edgekit.field.serving.wire import ApiError

OPEN = ("/healthz", "/readyz")  # their answer is only yes or no


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that refuses requests without the token or, when there is no token, for another host name.

    A web page can make a browser send requests to `127.0.0.1`, and read the response if its own host name resolves there
    (DNS rebinding); such a request names that host. `refused` is called with the reason of each refusal.
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None, local: bool, refused: Callable[[ApiError], None]
    ) -> None:
        self._app = app
        self._token = token.encode() if token else None
        self._local = local
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        error = self._error(scope) if scope["type"] == "http" and scope["path"] not in OPEN else None
        if error is None:
            await self._app(scope, receive, send)
            return
        self._refused(error)
        headers = {"www-authenticate": "Bearer"} if error.status == 401 else None
        await JSONResponse(error.document, error.status, headers)(scope, receive, send)

    def _error(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if self._token is not None:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token):
                return None
            return ApiError(
                401,
                "The bearer token is missing or wrong.",
                kind="authentication_error",
                code="invalid_api_key",
            )
        if self._local and not is_loopback(_host(headers.get(b"host", b"").decode("latin-1"))):
            return ApiError(
                403, "This server has no token, so it answers only requests to localhost or 127.0.0.1."
            )
        return None


def _host(header: str) -> str:
    """The host in a Host header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
