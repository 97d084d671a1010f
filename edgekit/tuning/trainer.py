"""transformers' Trainer for adapters: computes logits of answer tokens only, in a reproducible order of rows.

The result of a step depends only on the weights, the seed and the number of the step, so a resumed run equals an
uninterrupted one bit for bit on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer

from edgekit.base.errors import StageError
from edgekit.tuning.encode import IGNORED, EncodedRow

POOL = 32  # batches whose rows are sorted by length as one group


def collate(rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
    """A batch: `input_ids` and `labels` `(B, T)`, padded on the right, and `lengths` `(B,)`.

    No attention mask is needed: attention is causal, so no answer token attends to the padding after it.
    """
    longest = max(len(row.input_ids) for row in rows)
    return {
        "input_ids": torch.tensor([row.input_ids + [0] * (longest - len(row.input_ids)) for row in rows]),
        "labels": torch.tensor([row.labels + [IGNORED] * (longest - len(row.labels)) for row in rows]),
        "lengths": torch.tensor([len(row.input_ids) for row in rows]),
    }


def answer_loss(model: nn.Module, head: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    """The summed cross-entropy of the supervised tokens, nats, and how many there are.

    The head, the widest layer, gets only the N positions that predict an answer token, `(N, hidden)`.
    """
    targets = batch["labels"][:, 1:].flatten()
    places = (targets != IGNORED).nonzero().squeeze(1)

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0][:, :-1].flatten(0, 1).index_select(0, places)

    hook = head.register_forward_pre_hook(select)
    try:
        logits = model(input_ids=batch["input_ids"]).logits
    finally:
        hook.remove()
    return F.cross_entropy(logits.float(), targets[places], reduction="sum"), len(places)


class LengthGroupedSampler(Sampler[int]):
    """Batches of rows of similar length in random order, which depends on the seed and the epoch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 16) + self.epoch)
        order, size = torch.randperm(len(self), generator=generator).tolist(), self.batch_size
        even = len(order) // size * size
        order, short = (
            order[:even],
            order[even:],
        )  # the remaining rows form a short batch at the end of the epoch
        batches: list[list[int]] = []
        for start in range(0, even, size * POOL):
            pool = sorted(order[start : start + size * POOL], key=self.lengths.__getitem__)
            batches += [pool[place : place + size] for place in range(0, len(pool), size)]
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[batch]
        yield from short


class AnswerTrainer(Trainer):  # type: ignore[misc]
    """Trainer with `answer_loss` and a length-grouped order; `read()` returns the loss and tokens of a step."""

    def __init__(self, rows: Sequence[EncodedRow], **options: Any) -> None:
        super().__init__(train_dataset=list(rows), data_collator=collate, **options)
        # Trainer then passes the number of supervised tokens of all accumulated batches to compute_loss.
        self.model_accepts_loss_kwargs = True
        lengths = [len(row.input_ids) for row in rows]
        self.sampler = LengthGroupedSampler(lengths, self.args.train_batch_size, self.args.seed)
        self._loss = 0.0
        self._tokens = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        return self.sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        """The batch's share of the step's mean loss per supervised token, nats.

        Raises `StageError` when it is not finite; the weights are then unchanged by this step.
        """
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        total, _ = answer_loss(model, head, inputs)
        loss: Tensor = total / num_items_in_batch
        loss *= self.accelerator.num_processes  # gradients are averaged over processes, not summed
        self._loss += loss.item()
        self._tokens += int(inputs["lengths"].sum())
        if not math.isfinite(self._loss):
            raise diverged("loss", self.state.global_step + 1)
        return loss

    def read(self) -> tuple[float, int]:
        """Mean loss, nats, and tokens of the step just done, over all processes."""
        reading = torch.tensor([self._loss, self._tokens], device=self.args.device)
        loss, tokens = self.accelerator.reduce(reading, "sum").tolist()
        self._loss, self._tokens = 0.0, 0
        return loss / self.accelerator.num_processes, int(tokens)

    @torch.no_grad()
    def validation_loss(self, batches: Sequence[dict[str, Tensor]]) -> float:
        """Mean cross-entropy per supervised token, nats; every process reads all batches."""
        self.model.eval()
        head = self.model.get_output_embeddings()
        total, count = 0.0, 0
        for batch in batches:
            loss, tokens = answer_loss(self.model, head, self._prepare_inputs(batch))
            total, count = total + loss.item(), count + tokens
        if not math.isfinite(total):
            raise diverged("validation loss", self.state.global_step)
        return total / count


def diverged(what: str, step: int) -> StageError:
    """The error for a loss that is not a number."""
    return StageError(
        f"The {what} is not a finite number at step {step}; no adapter was written.",
        "Lower learning_rate, for example to a third.",
    )
