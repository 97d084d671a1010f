"""The decoding speed of a file is measured before it exists, and types are chosen so that it is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import pytest
import tiny

from edgekit.base.errors import StageError
from edgekit.export.gguf import stream, stream_process
from edgekit.export.gguf.grids import GRIDS
from edgekit.export.gguf.kernels import TIME, USUAL, decode_speed, fast_enough, seconds_a_weight
from edgekit.export.weights.allocation import Choice

SHAPES = {"attn": (64, 64), "up": (192, 64), "down": (64, 192)}
CANDIDATES = {"attn": ["IQ4_NL", "Q8_0"], "up": ["IQ4_NL", "Q8_0"], "down": ["Q4_K", "Q8_0"]}
OVERHEAD, SECONDS = 1e-3, {"IQ4_NL": 1e-8, "Q4_K": 2e-8, "Q8_0": 4e-8}
WEIGHTS = sum(map(prod, SHAPES.values()))


def machine(slower: float = 1.0) -> Callable[[Mapping[str, str]], float]:
    """Tokens a second of a machine on which each weight takes the time of its type."""

    def speed(types: Mapping[str, str]) -> float:
        return 1 / (
            slower * (OVERHEAD + sum(prod(SHAPES[name]) * SECONDS[type] for name, type in types.items()))
        )

    return speed


def choices(times: Mapping[str, float]) -> dict[str, dict[str, Choice]]:
    """The faster a type, the more it costs."""
    return {
        name: {
            type: Choice(prod(SHAPES[name]), 1 / SECONDS[type], times[type] * prod(SHAPES[name]))
            for type in found
        }
        for name, found in CANDIDATES.items()
    }


def test_the_times_of_the_types_add_up_to_the_time_of_any_file() -> None:
    times = seconds_a_weight(CANDIDATES, SHAPES, machine())
    assert times.keys() == SECONDS.keys()
    for types in (
        {"attn": "IQ4_NL", "up": "Q8_0", "down": "Q4_K"},
        {"attn": "Q8_0", "up": "IQ4_NL", "down": "Q8_0"},
    ):
        taken = sum(prod(SHAPES[name]) * times[type] for name, type in types.items())
        assert taken == pytest.approx(1 / machine()(types))


@pytest.mark.parametrize("slower", [1.0, 1.15], ids=["as promised", "slower than promised"])
def test_the_types_reach_the_speed_that_is_measured(slower: float) -> None:
    times = seconds_a_weight(CANDIDATES, SHAPES, machine())
    fastest = machine(slower)({"attn": "IQ4_NL", "up": "IQ4_NL", "down": "Q4_K"})
    wanted = 0.9 * fastest
    plan, found = fast_enough(choices(times), 10**6, wanted, machine(slower))
    assert found == machine(slower)(plan.types) >= wanted
    easy, _ = fast_enough(
        choices(times), 10**6, machine(slower)(dict.fromkeys(SHAPES, USUAL)), machine(slower)
    )
    assert {*easy.types.values()} == {USUAL} and easy.cost < plan.cost


def test_a_speed_that_is_never_reached_is_an_error() -> None:
    times = seconds_a_weight(CANDIDATES, SHAPES, machine())
    with pytest.raises(StageError, match=r"fastest types a token takes 1\.\d\d times as long.*No file"):
        fast_enough(
            choices(times),
            10**6,
            1.5 * machine()({"attn": "IQ4_NL", "up": "IQ4_NL", "down": "Q4_K"}),
            machine(),
        )
    with pytest.raises(
        StageError, match="decode 5 tokens a second on this machine, 500 were asked for"
    ) as caught:
        fast_enough(choices(dict.fromkeys(times, 0.0)), 10**6, 500, lambda _: 5.0)
    assert "lower speed" in caught.value.hint


def test_every_type_has_a_time() -> None:
    assert TIME.keys() == GRIDS.keys() and TIME[USUAL] == 1


def test_a_file_with_a_hole_is_as_large_as_the_real_one_and_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.maker(tmp_path)("llama")
    options = tiny.gguf_options("Q4_0", tensor_types={"ffn_down": "Q8_0"})
    real, hollow = tmp_path / "real.gguf", tmp_path / "hollow.gguf"
    stream.stream(model, real, options)
    stream.hollow(model, hollow, options)
    assert hollow.stat().st_size == real.stat().st_size
    end = next(
        place
        for place, pair in enumerate(zip(real.read_bytes(), hollow.read_bytes(), strict=True))
        if pair[0] != pair[1]
    )
    assert not any(hollow.read_bytes()[end:])  # behind the same header
    monkeypatch.setattr(stream_process, "hollow", stream.hollow)
    assert decode_speed(model, options, 1) > 1
