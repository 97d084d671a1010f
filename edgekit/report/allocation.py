"""The type of each tensor of a quantized file: for report.json, in words, and as rows of a picture and of a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from edgekit.base.numbers import finite
from edgekit.containers.ggml_types import BITS
from edgekit.report.summary import NONE, figure

FILE = "plan.json"  # which the quantizer writes beside its file
MOST = 5  # tensors that are named
IN_ORDER = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
LAYER = re.compile(r"\bblk\.(\d{1,4})\.")
LIGHTEST = 0.25  # shade of the type with the fewest bits
Number = Annotated[float | None, BeforeValidator(finite)]


class _Try(BaseModel):
    """A file that was compared with the model."""

    calibration: str
    bytes: int
    estimated_kld_nats: Number = None
    mean_kld_nats: dict[str, Number] = {}


class _Plan(BaseModel):
    """The plan of the quantizer: estimated KL divergence in nats, and errors of outputs as shares of their size."""

    types: dict[str, str] = Field(min_length=1)
    cost: Number = None
    costs: dict[str, Number] = {}
    errors: dict[str, Number] = {}
    calibration: str | None = None
    mean_kld_nats: dict[str, Number] = {}
    tries: list[_Try] = []


class Kind(NamedTuple):
    """Tensors of one kind."""

    name: str
    types: Sequence[str | None]
    """Of each layer, None in a layer without such a tensor; of a tensor outside the layers, only its own."""
    bits: float | None
    """Of each weight, mean over the layers."""
    layered: bool

    @property
    def mean(self) -> str:
        """Its bits as `4.97`."""
        return NONE if self.bits is None else f"{self.bits:.2f}"


def read(folder: Path) -> dict[str, Any] | None:
    """What report.json says under `quantization` of a file, from the plan in the folder of its stage.

    `bits_per_weight` of a kind is the mean over its layers, whose tensors are equally large. None when there is no plan, or
    none that can be read.
    """
    try:
        plan = _Plan.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError):
        return None
    if not set(plan.types.values()) <= BITS.keys():
        return None
    layers: dict[str, dict[int, str]] = {}
    others: dict[str, str] = {}
    for name, type in plan.types.items():
        if found := LAYER.search(name):
            layers.setdefault(_short(LAYER.sub("", name)), {})[int(found[1])] = type
        else:
            others[_short(name)] = type
    kinds = [kind for kind in dict.fromkeys([*IN_ORDER, *layers]) if kind in layers]
    count = 1 + max((layer for of in layers.values() for layer in of), default=-1)
    return {
        "estimated_kld_nats": plan.cost,
        "counts": dict(Counter(plan.types.values()).most_common()),
        "bits_per_weight": {
            **{kind: _bits(layers[kind].values()) for kind in kinds},
            **{name: _bits([type]) for name, type in others.items()},
        },
        "layers": {kind: [layers[kind].get(layer) for layer in range(count)] for kind in kinds},
        "others": others,
        "worst": _worst(plan),
        **({"calibration": _calibration(plan)} if plan.calibration is not None else {}),
    }


def _short(name: str) -> str:
    return name.removesuffix(".weight")


def _bits(types: Iterable[str]) -> float:
    found = [BITS[type] for type in types]
    return round(sum(found) / len(found), 3)


def _worst(plan: _Plan) -> list[dict[str, Any]]:
    """The tensors that cost most, or without costs those with the largest errors."""
    scores = plan.costs or plan.errors
    known = [(score, name) for name in plan.types if (score := scores.get(name)) is not None]
    return [
        {"name": _short(name), "type": plan.types[name], "cost_nats": plan.costs.get(name), "error": plan.errors.get(name)}
        for _, name in sorted(known, key=lambda one: -one[0])[:MOST]
    ]  # fmt: skip


def _calibration(plan: _Plan) -> dict[str, Any]:
    """The calibration set of the file, its divergences on held-out text, and all files that were compared."""
    tries = [each.model_dump() for each in plan.tries]
    return {"set": plan.calibration, "mean_kld_nats": plan.mean_kld_nats, "tries": tries}


def allocated(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The types of each file that has a plan, by format."""
    artifacts = report.get("artifacts") or []
    return {one["format"]: found for one in artifacts if (found := one.get("quantization"))}


def kinds(found: Mapping[str, Any]) -> list[Kind]:
    """The rows of a picture: kinds of tensors by layer, then those outside the layers."""
    bits = found["bits_per_weight"]
    return [
        *(Kind(name, types, bits.get(name), True) for name, types in found["layers"].items()),
        *(Kind(name, [type], bits.get(name), False) for name, type in found["others"].items()),
    ]


def shades(found: Mapping[str, Any]) -> dict[str, float]:
    """The types from the fewest bits to the most, with a shade from `LIGHTEST` to 1; equally many bits have the same one."""
    types = sorted((type for type in found["counts"] if type in BITS), key=lambda type: (BITS[type], type))
    steps = {bits: step for step, bits in enumerate(sorted({BITS[type] for type in types}))}
    each = (1 - LIGHTEST) / max(1, len(steps) - 1)
    return {type: LIGHTEST + each * steps[BITS[type]] for type in types}


def error(one: Mapping[str, Any]) -> str:
    """The error of the outputs of one of the worst tensors: in percent, which are far below 0.1 for the wide types."""
    return NONE if one["error"] is None else f"{figure(100 * one['error'])}\N{NO-BREAK SPACE}%"


def by_cost(found: Mapping[str, Any]) -> bool:
    """Whether the worst tensors are those that cost most, rather than those with the largest errors."""
    return any(one["cost_nats"] is not None for one in found["worst"])


def short(report: Mapping[str, Any]) -> list[str]:
    """One line for each file that has a plan: how many tensors have which type, and which costs most."""
    whole = {one["format"]: one.get("bits_per_weight") for one in report.get("artifacts") or []}
    lines = []
    for name, found in allocated(report).items():
        (type, n), *more = found["counts"].items()
        counts = [f"{n} tensor{'s' if n > 1 else ''} {type}", *(f"{n} {type}" for type, n in more)]
        line = f"{name}: {figure(whole[name])} bits per weight; {', '.join(counts)}"
        if found["worst"]:
            worst, what = found["worst"][0], "most costly" if by_cost(found) else "largest error"
            line += f"; {what}: {worst['name']} ({worst['type']})"
        lines.append(line)
    return lines
