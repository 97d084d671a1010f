"""What is done around each step: seeding of dropout, live readings, evaluations, checkpoints, early stopping."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from edgekit.base.events import Emit, Measured, Progress
from edgekit.targets.target import Tune
from edgekit.tuning import checkpoint
from edgekit.tuning.checkpoint import Run, Weights
from edgekit.tuning.encode import EncodedRow
from edgekit.tuning.trainer import AnswerTrainer, collate


class Watch(TrainerCallback):  # type: ignore[misc]
    """Evaluates at equal intervals, keeps the best adapter, and stops when evaluations no longer improve.

    `run` is updated at every step. Every process evaluates and decides in the same way; only the main one writes to
    `work`.
    """

    def __init__(
        self,
        trainer: AnswerTrainer,
        validation: Sequence[EncodedRow],
        options: Tune,
        *,
        run: Run,
        resumed: Path | None,
        work: Path,
        emit: Emit,
    ) -> None:
        self.trainer = trainer
        size, by_length = options.batch_size, sorted(validation, key=lambda row: len(row.input_ids))
        self.validation = [
            collate(by_length[place : place + size]) for place in range(0, len(by_length), size)
        ]
        self.run = run
        self.resumed = resumed
        self.evaluations = max(1, round(options.evaluations_per_epoch * options.epochs))
        self.patience = options.patience
        self.work = work
        self.emit = emit
        self.best: Weights = checkpoint.load_best(resumed) if resumed else {}
        self._losses: list[float] = []  # of the steps since the last evaluation
        self._last_validation = run.best_loss
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Restore the optimiser when a run is resumed."""
        if self.resumed:
            checkpoint.restore(self.resumed, parts["optimizer"], parts["lr_scheduler"])

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Set the epoch: accelerate does not when several processes skip to the step where they resume."""
        self.trainer.set_epoch(int(state.epoch))

    def on_step_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Seed dropout with the number of the step."""
        torch.manual_seed((state.global_step << 32) + (args.process_index << 16) + args.seed)
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        """Report the step; when an evaluation is due, evaluate, keep the best adapter and write a checkpoint."""
        loss, tokens = self.trainer.read()
        self.run.seconds += time.perf_counter() - self._started
        self.run.tokens += tokens
        self.run.step, self.run.epoch = state.global_step, state.epoch
        self._losses.append(loss)
        self._measure("loss", loss, "nats", state)
        self._measure("tokens_per_s", self.run.tokens_per_s, "tokens/s", state)
        if self._due(state.global_step, state.max_steps):
            self._evaluate(state)
            if self.run.evaluations_without_gain >= self.patience:
                control.should_training_stop = True
            self.run.finished = control.should_training_stop or state.global_step >= state.max_steps
            if state.is_world_process_zero:
                checkpoint.save(
                    self.work,
                    model=parts["model"],
                    best=self.best,
                    optimizer=parts["optimizer"],
                    scheduler=parts["lr_scheduler"],
                    state=state,
                    run=self.run,
                )
        readings = [f"loss {loss:.2f}"]
        if self._last_validation is not None:
            readings.append(f"val {self._last_validation:.2f}")
        readings.append(f"{self.run.tokens_per_s:.0f} tok/s")
        self.emit(Progress("tune", state.global_step, state.max_steps, "steps", " · ".join(readings)))

    def _due(self, step: int, last: int) -> bool:
        return step * self.evaluations // last > (step - 1) * self.evaluations // last

    def _evaluate(self, state: Any) -> None:
        """Measure the validation loss; without validation rows the latest adapter counts as the best."""
        run, losses = self.run, self._losses
        if self.validation:
            self._last_validation = self.trainer.validation_loss(self.validation)
            self._measure("validation_loss", self._last_validation, "nats", state)
        if self._last_validation is None or run.best_loss is None or self._last_validation < run.best_loss:
            run.best_loss, run.best_step = self._last_validation, state.global_step
            run.train_loss = sum(losses) / len(losses)
            run.evaluations_without_gain = 0
            self.best = checkpoint.adapter_weights(self.trainer.model)
        else:
            run.evaluations_without_gain += 1
        losses.clear()

    def _measure(self, metric: str, value: float, unit: str, state: Any) -> None:
        self.emit(Measured("tune", metric, value, unit, state.global_step))
