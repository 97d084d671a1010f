"""Answers as observations, for those who listen while a model is served."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.answer import Answer
from edgekit.manifest import MANIFEST
from edgekit.telemetry.observation import Observation


def release_of(source: Path) -> str:
    """The name of a bundle's version: 12 hex digits of its manifest's SHA-256; empty for a plain model."""
    manifest = source / MANIFEST
    return hashlib.sha256(manifest.read_bytes()).hexdigest()[:12] if manifest.is_file() else ""


class Observed:
    """`Records` that hand every answer to `listeners` as an `Observation`, and keep nothing."""

    def __init__(self, release: str, format: str, listeners: Sequence[Callable[[Observation], None]]) -> None:
        self._release = release
        self._format = format
        self._listeners = listeners

    def record(self, answer: Answer) -> None:
        """Tell the listeners of `answer`."""
        certainty = answer.certainty
        observation = Observation(
            time=time.time(),
            release=self._release,
            format=self._format,
            operation=answer.operation,
            prompt_tokens=len(answer.prompt),
            answer_tokens=len(answer.ids),
            queue_s=answer.queue_s,
            ttft_s=answer.ttft_s,
            duration_s=answer.duration_s,
            confidence=certainty.confidence if certainty else None,
            entropy=certainty.entropy if certainty else None,
            finish=answer.finish or "error",
            error=answer.error,
        )
        for listener in self._listeners:
            listener(observation)
