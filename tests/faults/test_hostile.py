"""Files with sound containers and hurtful contents end in one sentence, whatever they do to the runtime."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import gguf
import numpy as np
import pytest
from faults import hostile
from faults.hostile import use

from edgekit.base.errors import CorruptError
from edgekit.containers import finite
from edgekit.containers.ggml_types import GGML_TYPES
from edgekit.containers.gguf_content import check_gguf
from edgekit.device import isolated
from edgekit.device.isolated import TimeLimits, open_isolated


@pytest.fixture
def file(small_gguf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(small_gguf, tmp_path / "model.gguf"))


def test_the_good_file_is_sound(small_gguf: Path) -> None:
    check_gguf(small_gguf)
    use("llama.cpp", small_gguf)


@pytest.mark.parametrize("case", hostile.GGUF)
def test_a_hostile_gguf_file_is_refused_by_the_rule_it_breaks(
    case: str, file: Path, small_gguf: Path
) -> None:
    hurt, rule = hostile.GGUF[case]
    hurt(file)
    assert file.read_bytes() != small_gguf.read_bytes()
    hostile.refused(check_gguf, "llama.cpp", file, rule)


@pytest.mark.parametrize("case", ["bos id outside the vocabulary", "fewer token types than tokens", "no heads",
                                  "NaN in the scale of a Q8_0 block", "billions of layers", "one token more than rows"])  # fmt: skip
def test_the_child_contains_what_the_rules_would_have_refused(
    case: str, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the rules taken out of the child, the runtime itself meets the file: the parent lives, and says so."""
    hurt, rule = hostile.GGUF[case]
    hurt(file)
    hostile.take_out_rules(tmp_path, monkeypatch.setenv)
    unseen = case in ("fewer token types than tokens", "bos id outside the vocabulary")
    assert hostile.contained("llama.cpp", file, rule) or unseen


def test_every_type_keeps_its_scales_where_the_check_looks() -> None:
    """A block whose scale is NaN is found, and one whose other bits are all set is not; gguf says which is which."""
    held = 0
    for kind, stored in GGML_TYPES.items():
        try:
            quantized = gguf.GGMLQuantizationType(kind)
            gguf.quants.dequantize(np.zeros((1, stored.block_bytes), np.uint8), quantized)
        except (NotImplementedError, ValueError, KeyError):
            continue
        if stored.name not in finite.SCALES and stored.name != "IQ1_M":
            continue
        chance = np.random.default_rng(kind)
        for _ in range(300):
            block = chance.integers(0, 256, stored.block_bytes, np.uint8)
            if chance.random() < 0.7:  # most exponents of random bits are finite: set one scale's bits
                at = chance.integers(0, max(1, stored.block_bytes - 1))
                block[at : at + 2] = 0xFF
            with np.errstate(all="ignore"):
                data = block.reshape(1, -1)
                if stored.name in ("F32", "F16", "F64", "BF16"):
                    data = block.view(
                        {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(stored.name, "u1")
                    ).reshape(1, -1)
                values = gguf.quants.dequantize(data, quantized)
            broken = finite.first_broken_block(block, stored) is not None
            assert broken == (not np.isfinite(values).all()), stored.name
        held += 1
    assert held >= 20


@pytest.mark.parametrize(
    "limits, said",
    [
        (TimeLimits(0.2, 60.0), r"did not finish encoding a text within 0\.2 s"),
        (
            TimeLimits(60.0, 0.2),
            r"exceeded 0\.2 s for all calls together, while encoding a text",
        ),
    ],
)
def test_a_process_that_hangs_is_ended_and_named(small_gguf: Path, limits: TimeLimits, said: str) -> None:
    opened = open_isolated("llama.cpp", small_gguf, threads=1)
    try:
        os.kill(opened.pid, signal.SIGSTOP)
        opened._limits, opened._taken_s = limits, 0.0
        with pytest.raises(CorruptError, match=said):
            opened.encode("hello")
    finally:
        opened.close()


def test_a_file_that_is_slow_on_every_call_is_ended(
    small_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call takes as long as one may; together they take longer than all may."""
    opened = open_isolated("llama.cpp", small_gguf, threads=1, limits=TimeLimits(60.0, 100.0))
    try:
        seconds = iter(range(0, 10_000, 30))
        monkeypatch.setattr(isolated.time, "monotonic", lambda: next(seconds))
        with pytest.raises(CorruptError, match="all calls together"):
            for _ in range(9):
                opened.encode("hello")
    finally:
        opened.close()


def test_the_limits_follow_the_size_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 2 << 30)
    assert TimeLimits.of(tmp_path / "large") == TimeLimits(900.0, 3 * 3600.0)
    assert isolated.memory_limit_mib(tmp_path / "large") == 2048 + 4 * 2048


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_process_that_dies_is_named_by_its_signal(small_gguf: Path, number: signal.Signals) -> None:
    opened = open_isolated("llama.cpp", small_gguf, threads=1)
    try:
        os.kill(opened.pid, number)
        with pytest.raises(CorruptError, match=number.name):
            opened.encode("hello")
    finally:
        opened.close()


def test_memory_is_bounded(small_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context of a hundred million tokens does not fit the limit; the parent is told, and takes nothing."""
    monkeypatch.setattr(isolated, "MEMORY_MIB", 300.0)
    with pytest.raises(CorruptError):
        opened = open_isolated("llama.cpp", small_gguf, threads=1, context=100_000_000)
        try:
            opened.logits([1, 2, 3])
        finally:
            opened.close()
