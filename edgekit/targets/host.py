"""The machine that edgekit runs on, as far as a target's device can be compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edgekit.base import hardware

MODEL_NAME = Path(
    "/proc/device-tree/model"
)  # Linux on arm64 boards, such as "Raspberry Pi 5 Model B Rev 1.0"


@dataclass(frozen=True)
class Host:
    """Architecture, cores, memory in MiB, and the names by which the machine is known (board, processor, system)."""

    arch: str
    cores: int
    memory_mib: int
    names: str = ""

    @classmethod
    def here(cls) -> Self:
        """This machine, within the limits of its container."""
        found = hardware.fingerprint()
        try:
            board = MODEL_NAME.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            board = ""
        names = " ".join(filter(None, (board, found["cpu"], found["os"])))
        return cls(found["arch"], found["cores"], found["memory_mib"], names)
