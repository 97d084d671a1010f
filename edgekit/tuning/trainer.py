"""transformers' Trainer for adapters: computes logits of answer tokens only, in a reproducible order of rows.

The result of a step depends only on the weights, the seed and the number of the step, so a resumed run equals an
uninterrupted one bit for bit on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import Trainer

from edgekit.base.errors import StageError
from edgekit.tuning.encode import IGNORED, EncodedRow, Example

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


def answer_logits(
    model: nn.Module, head: nn.Module, batch: dict[str, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits `(N, V)` of the positions that predict an answer token, those tokens `(N,)`, and their rows `(N,)`.

    The head, the widest layer, gets only the N positions, `(N, hidden)`.
    """
    labels = batch["labels"][:, 1:]
    targets = labels.flatten()
    places = (targets != IGNORED).nonzero().squeeze(1)

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        return inputs[0][:, :-1].flatten(0, 1).index_select(0, places)

    hook = head.register_forward_pre_hook(select)
    try:
        logits = model(input_ids=batch["input_ids"]).logits
    finally:
        hook.remove()
    return logits.float(), targets[places], places // labels.shape[1]


def answer_loss(model: nn.Module, head: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    """The summed cross-entropy of the supervised tokens, nats, and how many there are."""
    logits, targets, _ = answer_logits(model, head, batch)
    return F.cross_entropy(logits, targets, reduction="sum"), len(targets)


def divergence(logits: Tensor, rows: Tensor, pairs: Tensor) -> Tensor:
    """How far the answers of paired rows differ, nats: the mean of both KL divergences, summed over answer tokens.

    `logits` are `(N, V)`, `rows` the row of each `(N,)`, and `pairs` two rows with the same answer each, `(P, 2)`. A pair
    whose answers have unequal numbers of tokens is left out. The regulariser of R-Drop (Liang et al. 2021,
    arXiv 2106.14448), here between a row and its noisy twin.
    """
    total = logits.new_zeros(())
    for one, other in pairs.tolist():
        mine, theirs = logits[rows == one], logits[rows == other]
        if len(mine) == len(theirs):
            first, second = mine.log_softmax(-1), theirs.log_softmax(-1)
            total = total + ((first.exp() - second.exp()) * (first - second)).sum() / 2
    return total


class Examples(Dataset[Example]):
    """The examples of each epoch: a row, or a row beside its noisy twin. The epochs take turns when there are more."""

    def __init__(self, epochs: Sequence[Sequence[Example]]) -> None:
        self.epochs = epochs
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Give the examples of `epoch`, from 0."""
        self.epoch = epoch % len(self.epochs)

    def lengths(self, epoch: int) -> list[int]:
        """Tokens of each example of `epoch`: those of its longest row."""
        examples = self.epochs[epoch % len(self.epochs)]
        return [max(len(row.input_ids) for row in example) for example in examples]

    def __len__(self) -> int:
        return len(self.epochs[self.epoch])

    def __getitem__(self, place: int) -> Example:
        return self.epochs[self.epoch][place]


def collate_examples(examples: Sequence[Example]) -> dict[str, Tensor]:
    """A batch of all rows of `examples`, and `pairs` `(P, 2)`: the places of rows and their twins."""
    rows: list[EncodedRow] = []
    pairs: list[tuple[int, int]] = []
    for example in examples:
        if len(example) == 2:
            pairs.append((len(rows), len(rows) + 1))
        rows += example
    return {**collate(rows), "pairs": torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)}


class LengthGroupedSampler(Sampler[int]):
    """Batches of rows of similar length in random order, which depends on the seed and the epoch.

    `lengths` are those of the rows in an epoch, of which each has as many.
    """

    def __init__(self, lengths: Callable[[int], Sequence[int]], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of `epoch`, from 0."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths(self.epoch))

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 16) + self.epoch)
        lengths = self.lengths(self.epoch)
        order, size = torch.randperm(len(lengths), generator=generator).tolist(), self.batch_size
        even = len(order) // size * size
        order, short = (
            order[:even],
            order[even:],
        )  # the remaining rows form a short batch at the end of the epoch
        batches: list[list[int]] = []
        for start in range(0, even, size * POOL):
            pool = sorted(order[start : start + size * POOL], key=lengths.__getitem__)
            batches += [pool[place : place + size] for place in range(0, len(pool), size)]
        for batch in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[batch]
        yield from short


class AnswerTrainer(Trainer):  # type: ignore[misc]
    """Trainer with `answer_loss` and a length-grouped order; `read()` returns the loss and tokens of a step.

    `consistency` is the weight of the divergence between a row's answer and its twin's. `read()` does not count it.
    """

    def __init__(self, examples: Examples, consistency: float = 0.0, **options: Any) -> None:
        super().__init__(train_dataset=examples, data_collator=collate_examples, **options)
        # Trainer then passes the number of supervised tokens of all accumulated batches to compute_loss.
        self.model_accepts_loss_kwargs = True
        self.examples, self.consistency = examples, consistency
        self.sampler = LengthGroupedSampler(examples.lengths, self.args.train_batch_size, self.args.seed)
        self._loss = 0.0
        self._tokens = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the examples of `epoch`, from 0."""
        self.sampler.set_epoch(epoch)
        self.examples.set_epoch(epoch)

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
        logits, targets, rows = answer_logits(model, head, inputs)
        loss: Tensor = F.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch
        loss *= self.accelerator.num_processes  # gradients are averaged over processes, not summed
        self._loss += loss.item()
        if self.consistency and len(inputs["pairs"]):
            apart = divergence(logits, rows, inputs["pairs"]) / num_items_in_batch
            loss = loss + self.consistency * self.accelerator.num_processes * apart
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
