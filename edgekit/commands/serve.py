"""`edgekit serve`: a bundle behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.base.errors import ConfigError
from edgekit.commands import shell

if TYPE_CHECKING:
    from edgekit.device.confidence import Refusal
    from edgekit.field.releases.shadow import Shadow
    from edgekit.field.serving.deployment import Deployment


def register(app: typer.Typer) -> None:
    """Add the verb of this module to `app`."""
    app.command("serve")(serve)


@dataclass(frozen=True)
class ServeOptions:
    """The options of `edgekit serve`."""

    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="A bundle, a .gguf file or an onnxruntime-genai folder. Default: the release in use."
        ),
    ] = None
    format: Annotated[str | None, typer.Option("--format", help="gguf or onnx.")] = None
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on. Any address except loopback requires --token."),
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 uses any free port.")] = 8080
    uds: Annotated[Path | None, typer.Option("--uds", help="Unix socket to listen on instead of a port.")] = (
        None
    )
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="EDGEKIT_TOKEN",
            show_envvar=True,
            help="Bearer token that every request must carry.",
        ),
    ] = None
    queue: Annotated[int, typer.Option("--queue", min=1, help="Maximum number of waiting requests.")] = 64
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Maximum number of tokens that a request may ask for.")
    ] = 1024
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Time limit of a request in seconds.")
    ] = 120.0
    drain: Annotated[
        float,
        typer.Option(
            "--drain", min=0.0, help="Maximum seconds to finish accepted requests when the server stops."
        ),
    ] = 30.0
    shadow: Annotated[
        Path | None,
        typer.Option(
            "--shadow",
            help="A second bundle that gets the same requests; its answers are compared, not sent.",
        ),
    ] = None
    min_confidence: shell.MinConfidence = None
    refuse_out_of_scope: shell.RefuseOutOfScope = False
    keep_texts: Annotated[
        int,
        typer.Option("--keep-texts", min=0, help="Number of redacted prompts and answers to keep."),
    ] = 0
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", envvar="EDGEKIT_WEBHOOK", help="A URL that receives incidents."),
    ] = None
    threads: shell.Threads = 0
    state: shell.StateDir = shell.DEFAULT_STATE
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Open a bundle that failed its gates.")
    ] = False
    json: shell.Json = False
    quiet: shell.Quiet = False
    verbose: shell.Verbose = False


@shell.takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve a model to OpenAI clients. On SIGTERM or ctrl-c, finish the accepted requests and stop.

    Without BUNDLE, serve the release in use, and follow every promotion and rollback.
    """
    from edgekit.field.serving import server as serving

    refusal = shell.refusal(options.min_confidence, options.refuse_out_of_scope)
    _check(options)
    uds = options.uds
    bound = serving.listen(options.host, options.port) if uds is None else serving.listen_unix(uds)
    with contextlib.ExitStack() as stack:
        stack.callback(bound.close)
        if uds is not None:
            stack.callback(uds.unlink, missing_ok=True)
        candidate = _shadow(options, stack)
        deployment = _deployment(options, refusal, candidate)
        compared = (lambda: asdict(candidate.summary())) if candidate else None
        _serve(bound, deployment, options, compared)
        if compared:
            _remark(f"Shadow comparison: {compared()}")


def _check(options: ServeOptions) -> None:
    """Raise `ConfigError` for an endpoint that others could use without a token, and warn of plain HTTP."""
    from edgekit.field.serving.guard import is_loopback

    if options.token == "":
        raise ConfigError(
            "The token is empty. Nothing was started.", "Give --token a value, or leave it out."
        )
    if options.uds is not None or is_loopback(options.host):
        return
    if options.token is None:
        raise ConfigError(
            f"{options.host} can be reached from other machines, and no token is set. Nothing was started.",
            "Set EDGEKIT_TOKEN (or --token), or listen on 127.0.0.1.",
        )
    _remark(
        "Warning: this is plain HTTP, so the token and all texts can be read on the network. Use a TLS proxy."
    )


def _shadow(options: ServeOptions, stack: contextlib.ExitStack) -> Shadow | None:
    import edgekit
    from edgekit.field.releases.shadow import Shadow

    if options.shadow is None:
        return None
    shadow = Shadow(edgekit.load(options.shadow, options.format, threads=options.threads or None))
    stack.callback(shadow.close)
    return shadow


def _deployment(options: ServeOptions, refusal: Refusal | None, shadow: Shadow | None) -> Deployment:
    from edgekit.field.incidents.webhook import Webhook
    from edgekit.field.serving.deployment import Deployment, OpenOptions

    return Deployment(
        options.state,
        options.bundle,
        options=OpenOptions(
            options.format,
            options.threads or None,
            options.allow_failed,
            options.keep_texts,
            refusal,
        ),
        webhook=Webhook(options.webhook) if options.webhook else None,
        shadow=shadow,
        say=_remark,
    )


def _remark(text: str) -> None:
    """Print a line on stderr."""
    if not shell.state.quiet:
        sys.stderr.write(f"{text}\n")


def _serve(
    bound: socket.socket,
    deployment: Deployment,
    options: ServeOptions,
    shadow: Callable[[], Mapping[str, Any]] | None,
) -> None:
    from edgekit.field.serving import api
    from edgekit.field.serving import server as serving
    from edgekit.field.serving.deployment import model_name
    from edgekit.field.serving.engine import Engine
    from edgekit.field.telemetry.metrics import Metrics

    opened = deployment.opened
    name = model_name(opened.bundle)
    engine = Engine(
        opened.model,
        name=name,
        source=opened.bundle,
        release=opened.release,
        queue_size=options.queue,
        max_tokens=options.max_tokens,
        timeout_s=options.timeout,
    )
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
            key = ' -H "authorization: Bearer $EDGEKIT_TOKEN"' if options.token else ""
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
        token=options.token,
        local=local,
        shadow=shadow,
        status=lambda window_s: deployment.status(engine, window_s),
    )
    try:
        serving.serve(
            serving.Server(app, engine, drain_s=options.drain, ready=ready, stopping=stopping), bound, engine
        )
    finally:
        deployment.close()
