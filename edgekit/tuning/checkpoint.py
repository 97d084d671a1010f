"""Checkpoints of a tuning run: written completely or not at all, without pickles.

    <work>/checkpoint-<step>/
        adapter_model.safetensors  adapter_config.json     the current adapter, in PEFT's format
        best.safetensors                                   the adapter with the best validation loss so far
        optimizer.safetensors                              AdamW's moments
        run.json                                           learning rates, and the progress of the run
        trainer_state.json                                 Trainer's own record: step, epoch

No state of a random generator is kept: row order and dropout are functions of the seed and the step.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from edgekit.base.artifacts import remove, write_json, written_whole
from edgekit.containers.safetensors import ADAPTER_WEIGHTS

Weights = dict[str, Tensor]


@dataclass
class Run:
    """The progress of a tuning run; losses in nats per supervised token, `fingerprint` is the digest of its inputs."""

    fingerprint: str
    step: int = 0
    epoch: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_loss: float | None = None
    train_loss: float = 0.0
    evaluations_without_gain: int = 0
    finished: bool = False
    gradient_checkpointing: bool = False

    @property
    def tokens_per_s(self) -> float:
        """Tokens of training rows per second of training steps, evaluations left out."""
        return self.tokens / max(self.seconds, 1e-9)


def adapter_weights(model: Any) -> Weights:
    """A copy of the adapter's tensors on the CPU, by PEFT's names."""
    from peft import get_peft_model_state_dict

    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in get_peft_model_state_dict(model).items()
    }


def _write_weights(path: Path, weights: Weights) -> None:
    save_file(weights, path, metadata={"format": "pt"})


def _settings(config: Any) -> dict[str, Any]:
    """PEFT's settings as JSON in a fixed order, without the names of folders on this machine."""
    settings = config.to_dict() | {"base_model_name_or_path": None, "inference_mode": True}
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in sorted(settings.items())
    }


def save(
    work: Path, *, model: Any, best: Weights, optimizer: Any, scheduler: Any, state: Any, run: Run
) -> None:
    """Write the checkpoint of this step, then remove the previous one."""
    optimizer_state = optimizer.state_dict()
    moments = {
        f"{index}.{name}": tensor.contiguous()
        for index, values in optimizer_state["state"].items()
        for name, tensor in values.items()
    }
    rates = {"param_groups": optimizer_state["param_groups"], "scheduler": scheduler.state_dict()}
    final = work / f"checkpoint-{state.global_step}"
    with written_whole(final, force=True) as staging:
        staging.mkdir()
        write_json(staging / "adapter_config.json", _settings(model.peft_config["default"]))
        _write_weights(staging / ADAPTER_WEIGHTS, adapter_weights(model))
        _write_weights(staging / "best.safetensors", best)
        save_file(moments, staging / "optimizer.safetensors")
        write_json(staging / "run.json", {"run": asdict(run), **rates})
        state.save_to_json(str(staging / "trainer_state.json"))
    for folder in work.glob("checkpoint-*"):
        if folder != final:
            remove(folder)


def latest(work: Path, fingerprint: str) -> Path | None:
    """The latest checkpoint in `work` whose run had the same inputs."""
    for folder in sorted(
        work.glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True
    ):
        try:
            if load_run(folder).fingerprint == fingerprint:
                return folder
        except (OSError, ValueError, TypeError, KeyError):  # partly removed, or written by another version
            continue
    return None


def publish(checkpoint: Path, out: Path) -> None:
    """Write the best adapter to the new PEFT folder `out`; its bytes depend only on weights and settings."""
    out.mkdir()
    shutil.copyfile(checkpoint / "adapter_config.json", out / "adapter_config.json")
    shutil.copyfile(checkpoint / "best.safetensors", out / ADAPTER_WEIGHTS)


def load_run(checkpoint: Path) -> Run:
    """The progress of the run at `checkpoint`."""
    return Run(**_read(checkpoint)["run"])


def load_best(checkpoint: Path) -> Weights:
    """The best adapter so far."""
    weights: Weights = load_file(checkpoint / "best.safetensors")
    return weights


def restore(checkpoint: Path, optimizer: Any, scheduler: Any) -> None:
    """Restore the states of AdamW and of the learning rate."""
    rates = _read(checkpoint)
    moments: dict[int, Weights] = defaultdict(dict)
    for key, tensor in load_file(checkpoint / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        moments[int(index)][name] = tensor
    optimizer.load_state_dict({"state": dict(moments), "param_groups": rates["param_groups"]})
    scheduler.load_state_dict(rates["scheduler"])


def _read(checkpoint: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((checkpoint / "run.json").read_text(encoding="utf-8"))
    return value
