"""How fast llama.cpp multiplies by the weights of each type, which decides how fast an answer is decoded.

llama.cpp repacks the weights of some types for the processor's vector units (`ggml/src/ggml-cpu/repack.cpp`). Q5_0 and Q5_1
are not among them: their products take longer than those of Q8_0, which has more bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path

from edgekit import registry
from edgekit.base.errors import StageError
from edgekit.export.gguf import stream_process
from edgekit.export.weights.allocation import Choice, Plan, allocate
from edgekit.targets.target import GgufExport, Profile

USUAL = "Q8_0"
TIME = {
    "Q4_0": 0.55, "IQ4_NL": 0.55, "Q4_K": 0.6, "Q3_K": 0.8, "IQ4_XS": 0.85, "Q6_K": 0.9, "Q5_K": 0.95, "Q5_0": 1.05, USUAL: 1.0,
}  # fmt: skip
"""Time of a product with a weight of each type, as a share of Q8_0's: `benchmarks/kernels.md`."""
TRIES = 4
Shapes = Mapping[str, tuple[int, int]]
Asking = Callable[[Mapping[str, str]], GgufExport]
"""The options that give each tensor, by name, its type."""


def decode_speed(model: Path, options: GgufExport, threads: int) -> float:
    """Tokens a second that llama.cpp decodes on this machine with the file that `options` ask for.

    Measured on a file with a hole in place of the weights, so that no weight is rounded for it.
    """
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / "hollow.gguf"
        stream_process.hollow(model, file, options)
        runs = Profile(threads=[threads], prompt_tokens=8, generate_tokens=32)
        (entry,) = registry.load("profiles", "profile")(file, "llama.cpp", runs)
    return float(entry["decode_tokens_per_s"]["median"])


def seconds_a_weight(
    candidates: Mapping[str, Collection[str]], shapes: Shapes, speed: Callable[[Mapping[str, str]], float]
) -> dict[str, float]:
    """What a weight of each type adds to the time of decoding a token, s; `candidates` gives the types of each tensor.

    `speed` measures tokens/s when tensors have these types. For each type, all tensors that may have it get it and the others
    Q8_0. The time that no type changes is shared out among all weights.
    """
    weights = {name: prod(shapes[name]) for name in candidates}
    usual = 1 / speed(dict.fromkeys(candidates, USUAL))
    times = {USUAL: usual / sum(weights.values())}
    for type in sorted({type for types in candidates.values() for type in types} - {USUAL}):
        having = {name for name, types in candidates.items() if type in types}
        taken = 1 / speed({name: type if name in having else USUAL for name in candidates})
        times[type] = times[USUAL] + (taken - usual) / sum(weights[name] for name in having)
    return times


def fast_enough(
    choices: Mapping[str, Mapping[str, Choice]],
    max_size: float,
    wanted: float,
    speed: Callable[[Mapping[str, str]], float],
) -> tuple[Plan, float]:
    """The types that cost least and with which at least `wanted` tokens a second are decoded, and the measured speed.

    Where the choices' times promise more than is measured, the limit is tightened, a few times. Raises `StageError` if
    that does not help, and as `allocate` does.
    """
    limit, found = 1 / wanted, 0.0
    for _ in range(TRIES):
        plan = allocate(choices, max_size, limit)
        if (found := speed(plan.types)) >= wanted:
            return plan, found
        limit *= found / wanted
    raise StageError(
        f"The types that were chosen decode {found:.0f} tokens a second on this machine, {wanted:g} were asked for. "
        "No file was written.",
        "Ask for a lower speed, or let nothing else run on the machine.",
    )
