"""A scripted model whose every token a test can hold back, and a server that runs."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from edgekit.base.errors import ConfigError
from edgekit.device.confidence import Calibration, Refusal
from edgekit.device.loaded import LoadedModel
from edgekit.field.serving import server as serving
from edgekit.field.serving.engine import Engine
from edgekit.field.telemetry.observation import Observation
from edgekit.models.chat import ChatTemplate
from edgekit.models.sampling import Sampling

# reading the system's certificates takes longer than most of these tests
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
ECHO = ChatTemplate("{{ messages[-1]['content'] }}")


class Scripted:
    """A runtime of single bytes that answers `reply(prompt)`; with a `gate`, each token waits for one permit."""

    name = "scripted"
    vocab_size = 257
    stop_ids = frozenset({256})
    chat_template = ECHO

    def __init__(self, reply: Callable[[str], str], *, gated: bool = False, context: int = 4096) -> None:
        self.reply = reply
        self.gate = threading.Semaphore(0) if gated else None
        self.context = context
        self.began = threading.Semaphore(0)
        self.made = 0
        self.closed = threading.Event()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    def generate(
        self, ids: Sequence[int], max_tokens: int, sampling: Sampling = Sampling(), *, process: Any = None
    ) -> Iterator[int]:
        if len(ids) + max_tokens > self.context:
            raise ConfigError("Too long for the context.")
        assert not self.closed.is_set(), "asked after it was closed"
        self.began.release()
        answer = self.reply(bytes(ids).decode()).encode()
        for place, byte in enumerate([*answer, 256][:max_tokens]):
            if self.gate:
                assert self.gate.acquire(timeout=20)
            logits = np.full(257, -50.0, np.float32)
            logits[byte] = 50.0
            if process:
                process(list(answer[:place]), logits)
            token = int(logits.argmax())
            if token == 256:
                return
            self.made += 1
            yield token

    def close(self) -> None:
        self.closed.set()


LABELS = ("beyond", "close", "open", "open_all")


class Sure(Scripted):
    """Answers with the last word, and is sure of it among `LABELS`, unless the prompt has the word "perhaps".

    No label is likely then, so the request is out of scope.
    """

    def __init__(self) -> None:
        super().__init__(lambda text: text.split()[-1])
        self.scored = 0

    def score_answers(self, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        self.scored += 1
        text = self.decode(prompt)
        likely = text.split()[-1] if "perhaps" not in text else ""
        return [(len(answer) + 1) * (-0.1 if self.decode(answer) == likely else -2.0) for answer in answers]

    def loaded(self, refusal: Refusal | None = None) -> LoadedModel:
        """It as a bundle whose answers are labels, one of which means "out of scope"; a server refuses some."""
        model = LoadedModel(self, format="gguf", max_tokens=64)  # type: ignore[arg-type]
        model.calibration = Calibration(LABELS, 0.5, 0.8, -1.0, ("beyond",))
        model.refusal = refusal
        return model


@dataclass
class Running:
    """A server that runs, and what it told of its answers."""

    engine: Engine
    server: serving.Server
    url: str
    seen: list[Observation]
    runtime: Any

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=NO_TLS, **options)

    def ask(self, text: str, client: httpx.Client | None = None, **body: Any) -> httpx.Response:
        with contextlib.ExitStack() as stack:
            asked = client or stack.enter_context(self.client())
            messages = [{"role": "user", "content": text}]
            return asked.post("/v1/chat/completions", json={"messages": messages, **body})

    def send(self, text: str, **body: Any) -> socket.socket:
        """Ask, and leave the answer to come: who closes the socket goes away."""
        host, port = self.url.removeprefix("http://").split(":")
        data = json.dumps({"messages": [{"role": "user", "content": text}], **body}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        sent = socket.create_connection((host, int(port)), timeout=10)
        sent.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
        return sent
