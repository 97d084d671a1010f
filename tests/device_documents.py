"""Status documents of made-up devices, as `edgekit serve` gives them at /status."""

from __future__ import annotations

import json
import time
from typing import Any

from edgekit.field.status import DeviceStatus, OpenIncident, ReleaseStatus, StatusSeries

NOW = 1_800_000_000.0


def incident(number: int = 7, severity: str = "critical", **changes: Any) -> OpenIncident:
    values = {"rule": "errors", "subject": "7f3a", "kind": "errors", "action": "suggest", "release": "7f3a", "since": NOW,
              "what": "20.0% of the requests failed, limit 5.0%, since 14:02.", "opened": NOW, "state": "OPEN",
              "silenced_until": None, "resolved": None, "acted": False}  # fmt: skip
    return OpenIncident(**{**values, "id": number, "severity": severity, **changes})


def status(*incidents: OpenIncident, state: str = "OK", **changes: Any) -> bytes:
    now = time.time()
    series = StatusSeries(now - 900, 60, [1] * 15, [0] * 15, [0.2] * 14 + [None], [20.0] * 15, [300.0] * 15, [None] * 15, [0.9] * 15)  # fmt: skip
    values = {
        "release": "7f3a",
        "model": "smol",
        "requests": 3,
        "ttft_p95_s": 0.2,
        "tokens_per_s": 20.0,
        "rss_mib": 300.0,
    }
    row = ReleaseStatus(**{**values, "state": state, "in_use": True, "since": now - 900, "until": now, "last_seen": now,
                           "incidents": list(incidents), "series": series, **changes})  # fmt: skip
    return json.dumps(DeviceStatus("a-host", now, 900.0, state, releases=[row]).to_dict()).encode()
