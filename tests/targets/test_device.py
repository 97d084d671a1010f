"""Whether a machine is the device that a target describes."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.targets import host
from edgekit.targets.host import Host
from edgekit.targets.target import GGUF_TYPES, Device, GgufExport

PI = Host("aarch64", 4, 8000, "Raspberry Pi 5 Model B Rev 1.0 Cortex-A76 Linux 6.6")
BOARD = Device(arch=["aarch64"], recognised_by="raspberry pi 5", threads=4, memory_mib=4096)


@pytest.mark.parametrize(
    ("machine", "differs"),
    [
        (PI, ""),
        (Host("x86_64", 4, 8000, PI.names), "needs aarch64"),
        (Host("aarch64", 64, 8000, "Neoverse-N1 Linux 6.6"), "needs raspberry pi 5"),
        (Host("aarch64", 2, 8000, PI.names), "needs 4 cores"),
        (Host("aarch64", 4, 2000, PI.names), "needs 4096 MiB"),
    ],
)
def test_a_machine_is_compared_with_the_device(machine: Host, differs: str) -> None:
    assert BOARD.differs(machine) == differs


def test_the_name_of_the_board_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    monkeypatch.setattr(host, "MODEL_NAME", tmp_path / "model")
    assert Host.here().names.startswith("Raspberry Pi 5 Model B Rev 1.0 ")
    monkeypatch.setattr(host, "MODEL_NAME", tmp_path / "nothing")
    assert Host.here().names and "Raspberry" not in Host.here().names


def test_every_listed_type_is_one_that_a_target_may_name() -> None:
    assert len(GGUF_TYPES) == len(set(GGUF_TYPES)) > 10
    for type in GGUF_TYPES:
        assert GgufExport(format="gguf", type=type).type == type
