"""The plan of a build: what it would do and need, determined before anything is trained.

Each figure is an estimate; the verdict names every reason why the build is not possible.
"""

from __future__ import annotations

import importlib.util
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from edgekit import registry
from edgekit.base import hardware
from edgekit.base.errors import ConfigError, EdgekitError, MissingPartError, UnsupportedError
from edgekit.base.hub import cache_folder
from edgekit.base.parts import install_line
from edgekit.build import needs
from edgekit.build.defaults import ROBUST_TIME
from edgekit.build.file_sizes import file_size, least_size
from edgekit.data.phrasings import PHRASINGS
from edgekit.data.splits import Dataset
from edgekit.models import given_template, hub
from edgekit.models import source as model
from edgekit.models.shape import MIB, Shape
from edgekit.targets.target import Export, Target, Tune
from edgekit.tuning import modules
from edgekit.tuning.memory import Need

BUILD_PARTS = ("torch", "transformers", "peft", "accelerate", "safetensors")
FORMAT_PARTS = {
    "gguf": ("gguf", "llama_cpp"),
    "onnx": ("onnxruntime_genai", "onnxruntime", "onnx", "onnx_ir"),
}
# The size of a file is estimated: one that is larger by so much surely exceeds the device's memory.
SURELY = 1.1
TUNE_FLOPS_PER_WEIGHT = 4.5  # forward 2, backward through the frozen base 2, the adapter's own share
TUNE_EFFICIENCY = 0.8  # of the machine's measured fp32 matrix product
FLOPS_SIZE, ONE_CORE_SIZE = 512, 64  # a product of some 2 ms, and one too small to be split
FLOPS_SPELLS, FLOPS_SPELL_S, FLOPS_REST_S, FLOPS_RUNS = 3, 0.1, 0.15, 7


@dataclass
class PlannedExport:
    """One file or folder that the build would write."""

    format: str
    type: str
    estimated_mib: float
    refusal: str = ""


@dataclass
class Plan:
    """The result of `edgekit plan`: the needed and free resources, and every problem found."""

    model: str
    architecture: str
    parameters: int
    target: str
    rows: dict[str, int]
    exports: list[PlannedExport]
    disk_needed_mib: int
    disk_free_mib: int
    memory_needed_mib: int
    memory_available_mib: int
    minutes_expected: float
    download_mib: int = 0
    """Weights that must be downloaded; included in `disk_needed_mib`."""
    gradient_checkpointing: bool = False
    """Whether tuning is expected to compute activations again in the backward pass; a GPU decides when tuning starts."""
    chat_template: bool = True
    """Whether the model has a chat template, its own or a given one."""
    missing_parts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    data: list[str] = field(default_factory=list)
    """How the rows were read."""
    left_out: str = ""
    """Modules that get no adapter, in a sentence."""
    size_limit_mib: float | None = None
    """Largest file that the target allows for this model."""
    peak_rss_limit_mib: float | None = None
    """Largest memory of a process that answers."""
    memory_by_stage_mib: dict[str, int] = field(default_factory=dict)
    """Of the stages that need the most; `memory_needed_mib` is the largest."""

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)

    def possible(self) -> str:
        """The formats that can be made, as `--formats` takes them; empty when there are none or all can be made."""
        names = [export.format for export in self.exports if not export.refusal]
        return ",".join(names) if len(names) < len(self.exports) else ""

    def check(self, arguments: Sequence[str] = ()) -> None:
        """Raise the error for a missing part, an export that is not possible, or too little disk or memory.

        `arguments` are the options of this build; the error proposes the same build without the refused formats.
        """
        if self.missing_parts:
            raise missing_parts_error(self.missing_parts)
        refused = [f"{export.format}: {export.refusal}" for export in self.exports if export.refusal]
        if refused:
            raise UnsupportedError(
                f"{self.model} cannot be built for {self.target}; nothing was started. {' '.join(refused)}",
                less_command("build", arguments, self.possible())
                or "Choose another model, or another target (`edgekit targets list`).",
            )
        if not self.chat_template:
            raise no_template_error(self.model, "build", arguments)
        if self.problems:
            raise ConfigError(
                f"Not enough memory or disk to build {self.model} for {self.target}; nothing was started.",
                "Free some memory or disk, choose a smaller model, or put --cache-dir and --out on a larger disk.",
                self.problems,
            )


def no_template_error(name: str, verb: str, arguments: Sequence[str]) -> UnsupportedError:
    """The error for a model without a chat template; it proposes `edgekit VERB` with one."""
    command = shlex.join(["edgekit", verb, *arguments, "--chat-template", given_template.CHATML])
    return UnsupportedError(
        f"{name} has no chat template, as is usual for a base model. Nothing was started.",
        f"Give it one: {command} (or your own: --chat-template FILE).",
    )


def less_command(verb: str, arguments: Sequence[str], possible: str) -> str:
    """The sentence that proposes `edgekit VERB` in the `possible` formats; empty when there are none."""
    if not possible:
        return ""
    command = shlex.join(["edgekit", verb, *without_option(arguments, "--formats"), "--formats", possible])
    return f"The other formats can be made: {command}"


def without_option(arguments: Sequence[str], option: str) -> list[str]:
    """The arguments without `option` and its value."""
    if option not in arguments:
        return list(arguments)
    at = list(arguments).index(option)
    return [*arguments[:at], *arguments[at + 2 :]]


def missing_parts(exports: Sequence[Export]) -> list[str]:
    """Packages that a build for `exports` needs and that are not installed; nothing is imported."""
    wanted = [*BUILD_PARTS, *(part for export in exports for part in FORMAT_PARTS.get(export.format, ()))]
    return [part for part in dict.fromkeys(wanted) if importlib.util.find_spec(part) is None]


def missing_parts_error(parts: Sequence[str]) -> MissingPartError:
    """The error for missing `parts`."""
    return MissingPartError(
        f"Building needs {', '.join(parts)}, which {'is' if len(parts) == 1 else 'are'} not installed.",
        install_line(*parts),
    )


def plan(source: model.Source, target: Target, data: Dataset, *, cache_dir: Path, out: Path) -> Plan:
    """Estimate what building `source` for `target` needs. Problems are in the result; see `Plan.check`.

    Raises only for a missing part, a model whose config cannot be read, or modules that cannot get an adapter.
    """
    if parts := missing_parts(target.export):
        raise missing_parts_error(parts)
    config = model.describe(source)
    is_remote = source.kind == "hub" and source.path is None
    counted = hub.weight_count(source.repository, source.revision) if is_remote else None
    parameters = counted or model.parameter_count(config)
    left_out = modules.chosen(config, target.tune).left_out
    weights = needs.Source.of(config, parameters, is_gguf=source.kind == "gguf")
    exports = [_plan_export(export, config, weights.shape, target) for export in target.export]
    limits = target.budget.for_model(parameters)
    places, download_mib = [cache_dir, out], 0.0
    if is_remote:
        download_mib = hub.missing_bytes(source.repository, source.revision) / MIB
        places.append(cache_folder())
    one_disk = hardware.on_one_disk(cache_dir, out)
    available = hardware.available_memory_mib()
    tuning = needs.tuning(weights, target.tune, data)
    recomputes = _recomputes(tuning, target.tune, available)
    memory = needs.stage_memory(
        weights,
        target,
        data,
        tuning.weights + (tuning.recomputed if recomputes else tuning.kept),
        available,
    )
    result = Plan(
        model=source.name,
        architecture=str((config.get("architectures") or [config.get("model_type")])[0]),
        parameters=parameters,
        target=target.name,
        rows=data.rows,
        data=data.notes,
        exports=exports,
        disk_needed_mib=round(needs.disk(weights, target, one_disk=one_disk) + download_mib),
        disk_free_mib=min(map(hardware.free_disk_mib, places)),
        download_mib=round(download_mib),
        memory_needed_mib=round(max(memory.values())),
        memory_available_mib=available,
        memory_by_stage_mib={stage: round(needed) for stage, needed in memory.items()},
        minutes_expected=_minutes(parameters, target, data),
        gradient_checkpointing=recomputes,
        left_out=left_out,
        chat_template=model.has_template(source),
        size_limit_mib=limits.size_mib,
        peak_rss_limit_mib=limits.peak_rss_mib,
    )
    if result.disk_needed_mib > result.disk_free_mib:
        result.problems.append(
            f"disk: about {result.disk_needed_mib} MiB needed, {result.disk_free_mib} MiB free"
        )
    if result.memory_needed_mib > result.memory_available_mib:
        result.problems.append(
            f"memory: about {result.memory_needed_mib} MiB needed by the stage {max(memory, key=lambda name: memory[name])}, "
            f"{result.memory_available_mib} MiB available"
        )
    return result


def _plan_export(export: Export, config: dict[str, Any], shape: Shape, target: Target) -> PlannedExport:
    try:
        refusal = registry.load("exporters", export.format).refusal(config, export)
    except EdgekitError as error:
        refusal = error.message
    kind, size = file_size(shape, export, target.quantize)
    least = least_size(shape, export, target.quantize)
    if not refusal and least > SURELY * target.device.memory_mib:
        refusal = (
            f"the file would take about {least:,.0f} MiB, and the target's device has {target.device.memory_mib:,} MiB "
            "(device.memory_mib)."
        )
    return PlannedExport(export.format, kind, round(size, 1), refusal)


def _recomputes(tuning: Need, options: Tune, available_mib: float) -> bool:
    """Whether tuning would use gradient checkpointing: as asked for, or by the memory of this machine."""
    if hardware.gpu() or options.gradient_checkpointing != "auto":
        return options.gradient_checkpointing == "on"
    return tuning.checkpoints(options, available_mib)


def _minutes(parameters: int, target: Target, data: Dataset) -> float:
    """Minutes for tuning (by arithmetic speed) and for answering the test rows with each model (by experience)."""
    characters = sum(len(message["content"]) for row in data.train for message in row.messages)
    characters += needs.TEMPLATE_CHARACTERS * len(data.train)
    tokens = characters / needs.CHARACTERS_PER_TOKEN * target.tune.epochs
    tokens *= ROBUST_TIME if target.tune.robust else 1
    tune = tokens * TUNE_FLOPS_PER_WEIGHT * parameters / (_flops() * TUNE_EFFICIENCY)
    asked = len(data.test) * (2 + len(target.export))
    if (evaluated := target.evaluate).robust:
        variants = len(evaluated.robust_families) + sum(phrasing.held_out for phrasing in PHRASINGS)
        asked += min(evaluated.robust_rows, len(data.test)) * variants * (1 + len(target.export))
    answers = asked * 30 * 2 * parameters / (_flops() * 0.1)
    return round((tune + answers) / 60 + 2.0, 1)


@cache
def _flops() -> float:
    """fp32 operations per second of matrix products on this machine, with the library's own number of threads.

    Measured once in a process, which takes a second: the terminal app plans anew with every change of a field.

    The best of many short measurements, because other programs disturb some of them, in several series with pauses, after
    which the threads are distributed over the cores again. A container's limit on processor time, unlike one on the number
    of processors, shows only in the mean.
    """
    if hardware.is_throttled():
        return _rate(FLOPS_SIZE, statistics.fmean)
    rates = [_rate(ONE_CORE_SIZE, min)]
    for _ in range(FLOPS_SPELLS):
        time.sleep(FLOPS_REST_S)
        rates.append(_rate(FLOPS_SIZE, min))
    return max(rates)


def _rate(size: int, typical: Callable[[list[float]], float]) -> float:
    import numpy as np

    left = np.ones((size, size), dtype=np.float32)
    times: list[float] = []
    end = time.perf_counter() + FLOPS_SPELL_S
    while len(times) < FLOPS_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / typical(times)
