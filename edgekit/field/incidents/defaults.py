"""The default alert rules, and the reader of a bundle's own rules."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgekit.base.errors import CorruptError
from edgekit.device.manifest import read_manifest
from edgekit.targets.rules import Rule
from edgekit.targets.target import Budget, Device

TTFT_P95_S = 5.0  # people wait so long for a first word; the end of a bucket, where the sketch is exact
SLOWER = 3.0  # times the profiled time to first token: prompts in the field are longer, and wait their turn
MEMORY_HEADROOM = 1.25  # times the profiled budget: serving keeps a queue and a web server beside the model
HEARTBEAT_S = 30.0  # telemetry beats at least every 10 s


def default_rules(
    device: Device = Device(),
    budget: Budget = Budget(),
    *,
    ttft_s: float | None = None,
    tokens_per_s: float | None = None,
) -> list[Rule]:
    """Rules for a device with this budget; `ttft_s` and `tokens_per_s` are what its profile measured, if any.

    Limits of the kinds that say a model is broken follow Beyer et al. 2018 (The Site Reliability Workbook, chapter 5):
    they must hold for a while, and be well for as long.
    """
    slow = max([TTFT_P95_S, *(SLOWER * known for known in (ttft_s, (budget.ttft_ms or 0.0) / 1000) if known)])
    memory = min(
        budget.peak_rss_mib * MEMORY_HEADROOM if budget.peak_rss_mib else device.memory_mib * 0.9,
        device.memory_mib,
    )
    # The highest reading of whole minutes that touch the window: one spike is seen for two minutes, and is no state.
    spike: dict[str, Any] = {"window_s": 60.0, "for_s": 180.0}
    rules = [
        Rule(kind="latency", above=round(slow, 2), clear=round(0.8 * slow, 2)),
        Rule(kind="memory", above=round(memory), clear=round(0.95 * memory), **spike, severity="critical"),
        Rule(kind="temperature", above=80.0, clear=75.0, **spike, action="never"),
        Rule(kind="temperature", metric="throttled_s", above=60.0, clear=10.0, action="never"),
        Rule(kind="errors", above=0.05, clear=0.01, window_s=900.0, min_requests=20, severity="critical"),
        Rule(kind="empty", above=0.1, clear=0.05),
        Rule(kind="drift", above=0.0, for_s=0.0, window_s=900.0),
        Rule(kind="calibration", above=0.1, clear=0.05, window_s=3600.0, min_requests=100),
        Rule(kind="integrity", above=0.0, for_s=0.0, severity="critical"),
        Rule(kind="heartbeat", above=HEARTBEAT_S, for_s=0.0, action="never", severity="critical"),
        Rule(kind="store", above=0.0, action="never"),
    ]  # fmt: skip
    if tokens_per_s:
        half = round(tokens_per_s / 2, 1)
        rules.append(Rule(kind="speed", below=half, clear=round(1.2 * half, 1)))
    return rules


def rules_of(bundle: Path | None, format: str | None = None) -> list[Rule]:
    """The rules of the target that a bundle was built for, or the default ones with its budget and its profile.

    Without a bundle, or with one whose manifest or report cannot be read for it, the default ones as they are.
    """
    if bundle is None:
        return default_rules()
    try:
        manifest = read_manifest(bundle)
        target = manifest["recipe"]["target"]
        if target.get("rule"):
            return [Rule.model_validate(rule) for rule in target["rule"]]
        budget = Budget.model_validate(target["budget"])
        device = Device.model_validate(target["device"])
    except (CorruptError, KeyError, TypeError, AttributeError, ValidationError):
        return default_rules()
    return default_rules(device, budget, **_measured(bundle, manifest, format))


def _measured(bundle: Path, manifest: Mapping[str, Any], format: str | None) -> dict[str, float]:
    """What the report measured for a format with the bundle's threads; nothing when that was another kind of machine."""
    from edgekit.field.profile import profiled

    with contextlib.suppress(KeyError, TypeError, StopIteration):
        path = manifest["formats"][format or next(iter(manifest["formats"]))]["path"]
        if found := profiled(bundle, path, manifest["threads"]):
            return {
                "ttft_s": found["ttft_ms"]["median"] / 1000,
                "tokens_per_s": found["decode_tokens_per_s"]["median"],
            }
    return {}
