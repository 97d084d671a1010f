"""The HTTP endpoints: OpenAI's chat, completions and models, health for supervisors, and metrics for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from edgekit.base.errors import ConfigError, EdgekitError, UnsupportedError
from edgekit.field.serving import wire
from edgekit.field.serving.engine import ALIAS, Draining, Engine, QueueFull, Ticket, TimeUp
from edgekit.field.serving.guard import Guard
from edgekit.field.serving.wire import ApiError, Body, ChatBody, CompletionBody, Reply
from edgekit.field.status import window_option
from edgekit.field.telemetry.metrics import CONTENT_TYPE, Metrics

BODY_BYTES = 1 << 20
BODY_S = 30.0  # to receive a body
REASONS = {
    400: "invalid",
    401: "unauthorized",
    403: "other_host",
    404: "unknown",
    405: "unknown",
    408: "slow_body",
    413: "too_large",
    415: "not_json",
    429: "queue_full",
    503: "draining",
    504: "timeout",
}


def create_app(
    engine: Engine,
    metrics: Metrics,
    *,
    token: str | None = None,
    local: bool = True,
    shadow: Callable[[], Mapping[str, Any]] | None = None,
    status: Callable[[float], Mapping[str, Any]] | None = None,
) -> Starlette:
    """The ASGI application that serves `engine`.

    With `token`, every request except health checks needs it; without one, `local` restricts requests to loopback names.
    `shadow` returns the comparison with a shadow candidate, for `/shadow`. `status` returns the document of schema
    `edgekit.monitor/1` for a window in seconds, for `/status`.
    """

    def refused(error: ApiError) -> None:
        if reason := REASONS.get(error.status):
            metrics.refused(reason)

    async def answer(request: Request, kind: type[Body]) -> Response:
        body = wire.parse(kind, await _read(request))
        if body.model is not None and not engine.answers_to(body.model):
            raise ApiError(
                404,
                f"There is no model '{body.model}' here; this is '{engine.name}' (or '{ALIAS}').",
                code="model_not_found",
                param="model",
            )
        ticket = engine.submit(body.request())
        reply = Reply(engine.name, kind is ChatBody)
        async with _watched(request, ticket):
            if body.stream:
                # an error before the first token still gets its own status code
                first = await anext(aiter(ticket), None)
            else:
                text = "".join([piece async for piece in ticket])
        if not body.stream:
            return JSONResponse(reply.whole(text, ticket), 499 if ticket.finish == "cancelled" else 200)
        return StreamingResponse(
            _events(first, ticket, reply, body.with_usage),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    async def guarded(request: Request, kind: type[Body]) -> Response:
        try:
            return await answer(request, kind)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # noqa: BLE001 - no part of a request may reach a log
            return problem(error)

    def problem(error: Exception) -> Response:
        told = _told(error)
        refused(told)
        return JSONResponse(told.document, told.status, told.headers)

    async def chat(request: Request) -> Response:
        return await guarded(request, ChatBody)

    async def completions(request: Request) -> Response:
        return await guarded(request, CompletionBody)

    async def models(request: Request) -> Response:
        return JSONResponse(wire.models(engine.name, engine.started))

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if not engine.answers_to(name):
            return problem(ApiError(404, f"There is no model '{name}' here.", code="model_not_found"))
        return JSONResponse(wire.models(engine.name, engine.started)["data"][0])

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        return PlainTextResponse("ready\n") if engine.ready else PlainTextResponse("not ready\n", 503)

    async def prometheus(request: Request) -> Response:
        return Response(metrics.render(), media_type=CONTENT_TYPE)

    building = asyncio.Lock()  # one status at a time, because it reads the stores

    async def shown(request: Request) -> Response:
        if status is None:
            return problem(ApiError(404, "This server keeps no telemetry, so it has no status."))
        try:
            window_s = window_option(request.query_params.get("window"))
            async with building:
                document = await asyncio.to_thread(status, window_s)
        except Exception as error:  # noqa: BLE001 - a store that cannot be read becomes an error message
            return problem(error)
        return JSONResponse(dict(document), headers={"cache-control": "no-store"})

    async def compared(request: Request) -> Response:
        if shadow is None:
            return problem(
                ApiError(
                    404, "No shadow candidate is running. Start one with `edgekit serve --shadow BUNDLE`."
                )
            )
        return JSONResponse(dict(shadow()))

    async def unknown(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return problem(ApiError(status, f"{request.method} {request.url.path} is not supported."))

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", prometheus),
            Route("/status", shown),
            Route("/shadow", compared),
        ],
        middleware=[Middleware(Guard, token=token, local=local, refused=refused)],
        exception_handlers={HTTPException: unknown},
    )


async def _read(request: Request) -> bytes:
    """The body; raises `ApiError` for one that is too large, too slow, or not JSON by its type."""
    # a web page may send other types to any host; for this one the browser must ask first, and is refused
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Send the body as 'content-type: application/json'.")
    too_large = ApiError(
        413, f"The body is too large; the limit is {BODY_BYTES:,} bytes.", code="request_too_large"
    )
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_BYTES:
        raise too_large
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                data += part
                if len(data) > BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"The body was not received within {BODY_S:g} s.") from None
    return bytes(data)


@asynccontextmanager
async def _watched(request: Request, ticket: Ticket) -> AsyncIterator[None]:
    """Cancel the answer when the client disconnects, or when this block ends with an error."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except BaseException:
        ticket.cancel()
        raise
    finally:
        watcher.cancel()


async def _events(first: str | None, ticket: Ticket, reply: Reply, with_usage: bool) -> AsyncIterator[bytes]:
    """The stream of one answer: its pieces, its finish reason, and the token counts if requested; or an error."""
    try:
        if first is not None:
            yield reply.chunk(first, ticket, with_usage=with_usage)
        async for piece in ticket:
            yield reply.chunk(piece, ticket, with_usage=with_usage)
        yield reply.chunk("", ticket, with_usage=with_usage, finish=ticket.finish)
        if with_usage:
            yield reply.counts(ticket)
        yield b"data: [DONE]\n\n"
    except Exception as error:  # noqa: BLE001 - the status code is sent already: the error goes into the stream
        yield wire.event(_told(error).document)
    finally:
        ticket.cancel()


def _told(error: Exception) -> ApiError:
    """The response for `error`; of an unknown error only its type is sent, because its text may repeat the request."""
    match error:
        case ApiError():
            return error
        case QueueFull():
            return ApiError(
                429,
                str(error),
                kind="requests",
                code="rate_limit_exceeded",
                retry_after_s=error.retry_after_s,
            )
        case Draining():
            return ApiError(
                503,
                str(error),
                kind="server_error",
                code="service_unavailable",
                retry_after_s=error.retry_after_s,
            )
        case TimeUp():
            return ApiError(504, str(error), kind="server_error", code="timeout")
        case ConfigError() | UnsupportedError():
            return ApiError(400, f"{error.message} {error.hint}".strip())
        case EdgekitError():
            return ApiError(500, error.message, kind="server_error")
    return ApiError(500, f"The model failed: {type(error).__name__}.", kind="server_error")


def describe(address: str, name: str) -> dict[str, Any]:
    """What a person can type to try the server: the base URL for clients, and a first request with curl."""
    socket, base = (
        (f"--unix-socket {address.removeprefix('unix:')} ", "http://localhost")
        if address.startswith("unix:")
        else ("", address)
    )
    question = '{"messages": [{"role": "user", "content": "Hello"}]}'
    return {
        "base_url": f"{base}/v1",
        "try": f"curl {socket}{base}/v1/chat/completions -H 'content-type: application/json' -d '{question}'",
        "model": name,
    }
