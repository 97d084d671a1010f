"""The reservoir: what it redacts, how it samples, and how large it gets."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edgekit.field.telemetry.reservoir import Reservoir, redact


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        ("Call Anna Hall about job 6830.", ["Anna", "Hall", "6830"]),
        ("please ask maria whether it works", ["maria"]),
        (
            "Mail jo.doe+x@mail.example.com or see https://example.com/u?id=3",
            ["jo.doe", "example.com", "id=3"],
        ),
        ("My number is +49 170 1234567, room B-12.", ["170", "1234567", "B-12"]),
        ("Peter Marsh wants V-301 on 12 March", ["Peter", "Marsh", "V-301", "12"]),
        ("Hello Victor, log 2.5 hours", ["Victor", "2.5"]),
        ("notify Rosa and then stop", ["Rosa"]),
        ("my name is Émile", ["Émile"]),
    ],
)
def test_what_may_name_someone_is_redacted(text: str, secrets: list[str]) -> None:
    redacted = redact(text)
    assert not [secret for secret in secrets if secret in redacted], redacted
    assert "[" in redacted and redact(redacted).count("[") >= redacted.count("["), (
        "redacting twice reveals nothing"
    )


def test_what_is_asked_for_stays_readable() -> None:
    assert redact("close the ticket, the pump works again") == "close the ticket, the pump works again"


def test_every_text_is_as_likely_to_be_kept(tmp_path: Path) -> None:
    kept: Counter[str] = Counter()
    words = [chr(97 + index // 5) * (2 + index % 5) for index in range(20)]
    for seed in range(200):
        reservoir = Reservoir(tmp_path / f"{seed}.jsonl", 5, seed=seed)
        for word in words:
            reservoir.offer(word, "")
        lines = (tmp_path / f"{seed}.jsonl").read_text().splitlines()
        assert len(lines) == 5
        kept.update(json.loads(line)["prompt"] for line in lines)
    assert len(kept) == 20 and max(kept.values()) < 2.2 * min(kept.values())


def test_the_file_is_private_from_its_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def opened(descriptor: int, *arguments: Any, **options: Any) -> Any:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return fdopen(descriptor, *arguments, **options)

    fdopen = os.fdopen
    monkeypatch.setattr(os, "fdopen", opened)
    monkeypatch.setattr(os, "chmod", lambda *arguments, **options: pytest.fail("too late"))
    monkeypatch.setattr(Path, "write_text", lambda *arguments, **options: pytest.fail("not private"))
    before = os.umask(0)
    try:
        Reservoir(tmp_path / "reservoir.jsonl", 5).offer("a word", "b")
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "reservoir.jsonl").stat().st_mode) == 0o600


def test_the_file_is_capped_private_and_goes_on_after_a_start(tmp_path: Path) -> None:
    path = tmp_path / "state" / "reservoir.jsonl"
    for _ in range(2):
        reservoir = Reservoir(path, 50, cap_kib=4, seed=1)
        for _ in range(60):
            reservoir.offer("a word " * 100, "b")
    assert 0 < path.stat().st_size <= 4 * 1024 and path.stat().st_mode & 0o077 == 0
    (tmp_path / "taken").write_text("")
    lost = Reservoir(tmp_path / "taken" / "reservoir.jsonl")
    lost.offer("a", "b")
    assert "cannot be written" in lost.trouble
