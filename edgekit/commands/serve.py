"""`edgekit serve`: a bundle behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.base.errors import ConfigError
from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.field.releases.shadow import Shadow
    from edgekit.field.serving.deployment import Deployment


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("serve")(serve)


def serve(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="A bundle, a .gguf file or an onnxruntime-genai folder; without it, the release in use."
        ),
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="gguf or onnx.")] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; all but loopback need --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes one that is free.")] = 8080,
    uds: Annotated[Path | None, typer.Option("--uds", help="A unix socket to listen on instead.")] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="EDGEKIT_TOKEN",
            show_envvar=True,
            help="Bearer token that every request must carry.",
        ),
    ] = None,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests that may wait.")] = 64,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest answer that may be asked for.")
    ] = 1024,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds for one request.")] = 120.0,
    drain: Annotated[
        float, typer.Option("--drain", min=0.0, help="Seconds to finish accepted requests when stopping.")
    ] = 30.0,
    shadow: Annotated[
        Path | None,
        typer.Option("--shadow", help="A bundle that answers the same requests unseen, to be compared."),
    ] = None,
    keep_texts: Annotated[
        int,
        typer.Option(
            "--keep-texts", min=0, help="Keep so many redacted prompts and answers; none by default."
        ),
    ] = 0,
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", envvar="EDGEKIT_WEBHOOK", help="A URL that is told of incidents."),
    ] = None,
    threads: shell.Threads = 0,
    state: shell.StateDir = shell.DEFAULT_STATE,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Open a bundle that failed its gates.")
    ] = False,
    json: shell.Json = False,
    quiet: shell.Quiet = False,
    verbose: shell.Verbose = False,
) -> None:
    """Serve a model to OpenAI's clients until SIGTERM or ctrl-c; what was accepted is still answered.

    Without BUNDLE the release in use is served, and another one takes its place when it is promoted or rolled back to.
    """
    from edgekit.field.serving import server as serving
    from edgekit.field.serving.guard import is_loopback

    if token == "":
        raise ConfigError("The token is empty.", "Give --token a value, or leave it out.")
    if uds is None and token is None and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and no token is set. Nothing was started.",
            "Set EDGEKIT_TOKEN (or --token), or listen on 127.0.0.1.",
        )
    if uds is None and not is_loopback(host):
        _remark(
            "Warning: this is plain HTTP, so the token and all texts can be read on the network. Use a TLS proxy."
        )
    bound = serving.listen(host, port) if uds is None else serving.listen_unix(uds)
    options = {
        "format": format, "threads": threads or None, "allow_failed": allow_failed, "keep_texts": keep_texts,
    }  # fmt: skip
    limits = {"queue_size": queue, "max_tokens": max_tokens, "timeout_s": timeout}
    with contextlib.ExitStack() as stack:
        stack.callback(bound.close)
        if uds is not None:
            stack.callback(uds.unlink, missing_ok=True)
        candidate = _shadow(shadow, format, threads, stack)
        deployment = _deployment(state, bundle, candidate, webhook, options)
        compared = (lambda: asdict(candidate.summary())) if candidate else None
        _serve(bound, deployment, token, drain, limits, compared)
        if compared:
            _remark(f"In the shadow: {compared()}")


def _shadow(
    bundle: Path | None, format: str | None, threads: int, stack: contextlib.ExitStack
) -> Shadow | None:
    import edgekit
    from edgekit.field.releases.shadow import Shadow

    if bundle is None:
        return None
    shadow = Shadow(edgekit.load(bundle, format, threads=threads or None))
    stack.callback(shadow.close)
    return shadow


def _deployment(
    state: Path, bundle: Path | None, shadow: Shadow | None, webhook: str | None, options: Mapping[str, Any]
) -> Deployment:
    from edgekit.field.incidents.webhook import Webhook
    from edgekit.field.serving.deployment import Deployment

    told = Webhook(webhook) if webhook else None
    return Deployment(state, bundle, webhook=told, shadow=shadow, say=_remark, **options)


def _remark(text: str) -> None:
    """A line for whoever watches, on stderr."""
    if not shell.state.quiet:
        sys.stderr.write(f"{text}\n")


def _serve(
    bound: socket.socket,
    deployment: Deployment,
    token: str | None,
    drain: float,
    limits: Mapping[str, Any],
    shadow: Callable[[], Mapping[str, Any]] | None,
) -> None:
    from edgekit.field.serving import api
    from edgekit.field.serving import server as serving
    from edgekit.field.serving.deployment import model_name
    from edgekit.field.serving.engine import Engine
    from edgekit.field.telemetry.metrics import Metrics

    opened = deployment.opened
    name = model_name(opened.bundle)
    engine = Engine(opened.model, name=name, source=opened.bundle, release=opened.release, **limits)
    metrics = Metrics(name, lambda: engine.waiting, lambda: engine.running)
    deployment.metrics = metrics
    deployment.start(engine)
    address = serving.address_of(bound)
    trial = api.describe(address, name)

    def ready() -> None:
        if shell.state.json:
            facts = {"pid": os.getpid(), "format": opened.model.format, "release": opened.release}
            shell.print_json({"address": address, **facts, **trial})
        else:
            key = ' -H "authorization: Bearer $EDGEKIT_TOKEN"' if token else ""
            shell.say(f"{name} ({opened.model.format}) answers on {address}; try: {trial['try']}{key}")
        if opened.telemetry.note:
            _remark(opened.telemetry.note)
        sys.stdout.flush()

    def stopping() -> None:
        _remark(f"Stopping: finishing {engine.waiting + engine.running} accepted requests.")

    local = not address.startswith("unix:")
    app = api.create_app(
        engine,
        metrics,
        token=token,
        local=local,
        shadow=shadow,
        status=lambda window_s: deployment.status(engine, window_s),
    )
    try:
        serving.serve(
            serving.Server(app, engine, drain_s=drain, ready=ready, stopping=stopping), bound, engine
        )
    finally:
        deployment.close()
