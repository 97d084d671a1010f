"""The server process: its socket, its signals, and its graceful shutdown."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from edgekit.base.errors import ConfigError, reason
from edgekit.field.serving.connections import ConnectionLimits, protocol
from edgekit.field.serving.engine import Engine

# httpx, and so OpenAI's client, reuses a connection for 5 s: closing it earlier could break a request being sent
KEEP_ALIVE_S = 75
HEAD_BYTES = 16 * 1024  # of a request's head
BACKLOG = 128  # the socket listens before the model is loaded, so that a second server fails at once
LAST_BYTES_S = 5  # to send the last bytes after the last answer


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to `host` and `port` (0 for a free one); raises `ConfigError` when that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
        return bound
    except OSError as error:
        hint = (
            "Another program uses it: choose another --port, or 0 for any free port."
            if error.errno == errno.EADDRINUSE
            else "Check --host and --port."
        )
        raise ConfigError(f"Port {port} of {host} cannot be used: {error.strerror}.", hint) from error


def listen_unix(path: Path) -> socket.socket:
    """A Unix socket that only this user may open; one that a dead process left behind is replaced.

    Raises `ConfigError` when another process listens there, or the path is not a socket.
    """
    bound = socket.socket(socket.AF_UNIX)
    try:
        if path.exists():
            if not stat.S_ISSOCK(path.stat().st_mode) or bound.connect_ex(str(path)) == 0:
                raise ConfigError(f"{path} is in use.", "Choose another --uds.")
            path.unlink()
        before = os.umask(0o177)
        try:
            bound.bind(str(path))
        finally:
            os.umask(before)
        bound.listen(BACKLOG)
    except (OSError, ConfigError) as error:
        bound.close()
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} cannot be used: {reason(error)}.", "Choose another --uds.") from error
    return bound


def address_of(bound: socket.socket) -> str:
    """The address for people: `http://host:port`, or `unix:/path`."""
    name = bound.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host = f"[{name[0]}]" if ":" in name[0] else name[0]
    return f"http://{host}:{name[1]}"


class Server(uvicorn.Server):
    """Serves until `stop`; the first signal stops it gracefully, a second one immediately.

    While it drains, new requests get 503 with Retry-After, and accepted ones have up to `drain_s` to finish. `limits`
    bounds the connections. `ready` is called once it listens, `stopping` when the shutdown begins.
    """

    def __init__(
        self,
        app: Starlette,
        engine: Engine,
        *,
        limits: ConnectionLimits = ConnectionLimits(),
        drain_s: float = 30.0,
        ready: Callable[[], None] = lambda: None,
        stopping: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=protocol(limits),
                h11_max_incomplete_event_size=HEAD_BYTES,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_BYTES_S,
            )
        )
        self._engine = engine
        self._drain_s = drain_s
        self._ready = ready
        self._stopping = stopping
        self._draining: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then call `ready`."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._ready()

    def stop(self) -> None:
        """Begin a graceful shutdown; may be called from any thread, also more than once."""
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._begin_to_drain)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: the first drains, the next ends the server immediately."""
        if self._draining is None and not self.should_exit:
            self.stop()
        else:
            self.should_exit = self.force_exit = True

    def _begin_to_drain(self) -> None:
        if self._draining is None:
            self._stopping()
            self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await asyncio.to_thread(self._engine.drain, self._drain_s)
        self.should_exit = True


def serve(server: Server, bound: socket.socket, engine: Engine) -> None:
    """Serve on `bound` until a signal or `Server.stop`, then free the model."""
    try:
        server.run(sockets=[bound])
    finally:
        engine.close()
