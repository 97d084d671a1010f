"""An answer and an alarm as the tests of the store give them; it imports no test library, for processes of their own."""

from __future__ import annotations

from edgekit.field.telemetry.drift import DriftAlarm
from edgekit.field.telemetry.observation import Observation

T0 = 1_700_000_040.0  # the start of a minute

SEEN = Observation(
    time=T0,
    release="abc",
    format="gguf",
    operation="chat",
    prompt_tokens=30,
    answer_tokens=11,
    queue_s=0.02,
    ttft_s=0.1,
    duration_s=0.6,
    confidence=0.9,
    entropy=0.2,
    unknown_rate=0.1,
    label="close_job",
)
ALARM = DriftAlarm(T0 + 5, "confidence", "psi", 2.0, 1.0, T0, "The confidence fell.")
