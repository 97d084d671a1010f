"""The record that telemetry keeps of one answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Observation:
    """One answered request: numbers and names of classes, never the text of prompt or answer.

    `time` is when it ended, Unix seconds. `confidence` is the geometric mean of the probability of the likeliest
    token and `entropy` the mean entropy, nats, over the first tokens; `unknown_rate` is the share of the prompt's tokens
    that the rows it was tuned on never use; `label` is the class of the answer. Unknown values are None.
    """

    time: float
    release: str
    format: str
    operation: str
    prompt_tokens: int
    answer_tokens: int
    queue_s: float
    ttft_s: float | None
    duration_s: float
    confidence: float | None = None
    entropy: float | None = None
    unknown_rate: float | None = None
    label: str | None = None
    finish: str = "stop"
    """`stop`, `length`, `cancelled` or `error`."""
    error: str | None = None
    """The kind of error, such as `StageError`."""
