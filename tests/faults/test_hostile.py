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
from faults.hostile import one_sentence, use

from edgekit.base.cache import Cache
from edgekit.base.errors import CorruptError
from edgekit.base.events import ignore
from edgekit.containers import finite
from edgekit.containers.ggml_types import GGML_TYPES
from edgekit.containers.gguf_content import check_gguf
from edgekit.device import isolated
from edgekit.device.isolated import open_isolated


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
    if rule:
        with pytest.raises(CorruptError, match=rf"\((?:{rule})\)") as refused:
            check_gguf(file)
    else:  # nothing but the runtime can find out; it may do so by ending its process
        with pytest.raises(CorruptError) as refused:
            use("llama.cpp", file)
    one_sentence(refused.value)


@pytest.mark.parametrize("case", ["bos id outside the vocabulary", "fewer token types than tokens", "no heads",
                                  "NaN in the scale of a Q8_0 block", "billions of layers"])  # fmt: skip
def test_the_child_contains_what_the_rules_would_have_refused(
    case: str, file: Path, small_gguf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the rules taken out of the child, the runtime itself meets the file: the parent lives, and says so."""
    hostile.GGUF[case][0](file)
    (tmp_path / "sitecustomize.py").write_text(
        "from edgekit.containers import gguf_content\ngguf_content.RULES.clear()\n"
        "gguf_content.first_broken_block = lambda *_: None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    try:
        use("llama.cpp", file)
    except CorruptError as error:
        one_sentence(error)
        assert f"({hostile.GGUF[case][1]})" not in error.message
    else:
        assert case in ("fewer token types than tokens", "bos id outside the vocabulary")


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


def test_a_process_that_hangs_is_ended_and_named(small_gguf: Path) -> None:
    opened = open_isolated("llama.cpp", small_gguf, threads=1, step_s=30.0)
    try:
        os.kill(opened.pid, signal.SIGSTOP)
        opened._step_s = 0.2
        with pytest.raises(CorruptError, match=r"not done with encoding a text after 0\.2 s"):
            opened.encode("hello")
    finally:
        opened.close()


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


def test_the_shell_says_it_in_a_sentence_and_exits_with_5(
    file: Path, small_model: Path, shell, tmp_path: Path
) -> None:
    hostile.GGUF["bos id outside the vocabulary"][0](file)
    done = shell(
        "verify",
        file,
        "--reference",
        small_model,
        "--cache-dir",
        Cache(tmp_path / "cache", ignore).root,
        "--quick",
    )
    assert done.returncode == 5, done.stderr
    assert "special token ids" in done.stderr and "Traceback" not in done.stderr and "GGML" not in done.stderr
