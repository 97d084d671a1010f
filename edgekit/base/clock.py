"""Formats and parses times and durations for people."""

from __future__ import annotations

import re
import time

from edgekit.base.errors import ConfigError

UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def span(seconds: float) -> str:
    """A duration as text: `0.4 s`, `12 s`, `2 min 05 s`, `1 h 03 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def clock(moment: float, now: float | None = None) -> str:
    """A time of day as `14:02`, with the date if it is not today."""
    then, today = time.localtime(moment), time.localtime(now)
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)


def seconds(text: str) -> float:
    """A duration such as `90s`, `5m`, `2h`, `1h30m` or `1d`, in seconds. Raises `ConfigError` for anything else."""
    whole = text.strip().lower().replace(" ", "")
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd])", whole)
    if not parts or "".join(number + unit for number, unit in parts) != whole:
        raise ConfigError(
            f"'{text}' is not a duration; nothing was changed.", "Write it like 90s, 5m, 2h or 1d."
        )
    return sum(float(number) * UNITS_S[unit] for number, unit in parts)


def short(length: float) -> str:
    """A duration in seconds as `seconds` reads it, in its largest whole unit: `90s`, `15m`, `1h` or `1d`."""
    unit = next((unit for unit in "dhm" if length % UNITS_S[unit] == 0), "s")
    return f"{length / UNITS_S[unit]:g}{unit}"
