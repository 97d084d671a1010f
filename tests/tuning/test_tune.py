"""The tune stage on a tiny model: it learns, resumes bit for bit, stops early and leaves nothing pickled."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from edgekit.base.artifacts import list_files
from edgekit.base.errors import ConfigError, StageError
from edgekit.base.events import Alert, Event, Measured, Progress, ignore
from edgekit.data.rows import Row
from edgekit.data.splits import Dataset
from edgekit.models import mapped
from edgekit.models.tokenizer import ModelTokenizer
from edgekit.targets.target import Tune
from edgekit.tuning import checkpoint
from edgekit.tuning import tune as tune_code
from edgekit.tuning.encode import encode_rows
from edgekit.tuning.trainer import LengthGroupedSampler, answer_loss, collate
from edgekit.tuning.tune import PREPARED_PRODUCTS, tune

HEAD = "model.layers.0.mlp.up_proj.base_layer.weight"
WORDS = ["the", "pump", "valve", "hall", "is", "open", "closed", "please", "check", "now", "sensor"]
OPTIONS = Tune(rank=4, batch_size=4, epochs=2, learning_rate=3e-3, dropout=0.1, dtype="float32")


def make_rows(count: int, seed: int = 0) -> list[Row]:
    choose = random.Random(seed)
    rows = []
    for number in range(count):
        question = " ".join(choose.choices(WORDS, k=choose.randint(2, 12)))
        answer = "Open the valve." if "open" in question else "Close it."
        messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        rows.append(Row(f"row-{number}", messages, None, number))
    return rows


TRAIN, VALIDATION = make_rows(18), make_rows(5, seed=1)  # 18 rows: the last of 5 batches is short


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Tune in the test's own folder; a second call resumes what the first one left."""

    def start(
        options: Tune = OPTIONS,
        train: Any = TRAIN,
        validation: Any = VALIDATION,
        emit: Any = ignore,
        name: str = "run",
    ) -> tuple[dict[str, Any], Path]:
        out = tmp_path / f"{name}-out"
        work = tmp_path / f"{name}-work"
        return tune(
            tiny_llama, Dataset("rows", train, validation, []), options, out, work=work, threads=1, emit=emit
        ), out

    return start


class Killed(BaseException):
    """Stands for the end of the process: nothing in the stage may catch it."""


def kill_at(step: int) -> Callable[[Event], None]:
    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.done == step:
            raise Killed

    return emit


def test_learns_reports_and_leaves_nothing_pickled(run: Any, tmp_path: Path, tiny_llama: Path) -> None:
    events: list[Event] = []
    summary, out = run(emit=events.append)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(1, 11))
    assert {event.total for event in progress} == {10}
    assert "loss" in progress[0].note and "val" not in progress[0].note
    assert "val" in progress[-1].note and "tok/s" in progress[-1].note
    metrics = [event for event in events if isinstance(event, Measured)]
    losses = [event.value for event in metrics if event.metric == "loss"]
    validation = {event.step: event.value for event in metrics if event.metric == "validation_loss"}
    assert losses[-1] < losses[0] - 1
    assert list(validation) == [3, 5, 8, 10]  # twice an epoch of 5 steps, and always at its end
    assert summary["validation_loss"] == min(validation.values()) == validation[summary["best_step"]]
    assert (summary["steps"], summary["epochs"], summary["left_out"]) == (10, 2.0, 0)
    assert (summary["device"], summary["dtype"]) == (
        "cuda" if torch.cuda.is_available() else "cpu",
        "float32",
    )
    rows, _ = encoded(tiny_llama, TRAIN)
    assert summary["tokens"] == 2 * sum(len(row.input_ids) for row in rows)

    assert {file.name for file in list_files(out)} == {"adapter_config.json", "adapter_model.safetensors"}
    assert {file.suffix for file in list_files(tmp_path)} == {".json", ".safetensors"}
    config = (out / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] is None
    assert str(tiny_llama) not in config


def encoded(model: Path, rows: list[Row]) -> Any:
    tokenizer = ModelTokenizer(model)
    return encode_rows(rows, tokenizer.chat_template, tokenizer, 512)


def test_the_adapter_written_has_the_validation_loss_reported(run: Any, tiny_llama: Path) -> None:
    summary, out = run()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, out).eval()
    total, count = 0.0, 0
    for row in encoded(tiny_llama, VALIDATION)[0]:  # the model's own loss, row by row: no padding, all logits
        labels = torch.tensor([row.labels])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss.item()
        learned = int((labels != -100).sum())
        total, count = total + loss * learned, count + learned
    assert summary["validation_loss"] == pytest.approx(total / count, abs=1e-4)


@pytest.mark.parametrize(
    ("step", "accumulate"),
    [(1, 1), (4, 1), (4, 2), (6, 2)],
    ids=["no checkpoint", "mid", "mid x2", "epoch x2"],
)
def test_a_killed_and_resumed_run_ends_with_the_same_bytes(
    run: Any, step: int, accumulate: int, tmp_path: Path
) -> None:
    options = OPTIONS.model_copy(update={"gradient_accumulation": accumulate, "batch_size": 4 // accumulate})
    whole, out = run(options)
    with pytest.raises(Killed):
        run(options, emit=kill_at(step), name="killed")
    assert not (tmp_path / "killed-out").exists()
    done: list[Event] = []
    resumed, again = run(options, emit=done.append, name="killed")
    first = next(event.done for event in done if isinstance(event, Progress))
    assert first == step  # checkpoints are at 3, 5, 8 and 10
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (again / file).read_bytes() == (out / file).read_bytes()
    for key in ("validation_loss", "train_loss", "tokens", "best_step", "steps"):
        assert resumed[key] == whole[key]


def test_activations_computed_again_give_the_same_bytes(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the rest of an interrupted run recomputes them, because memory was short."""
    whole, out = run(OPTIONS.model_copy(update={"gradient_checkpointing": "off"}))
    assert whole["gradient_checkpointing"] is False
    with pytest.raises(Killed):
        run(emit=kill_at(4), name="killed")
    monkeypatch.setattr(tune_code, "available_memory_mib", lambda: 1)
    said: list[Event] = []
    resumed, again = run(name="killed", emit=said.append)
    assert resumed["gradient_checkpointing"] is True
    assert any("computed again" in event.message for event in said if isinstance(event, Alert))
    assert next(event.done for event in said if isinstance(event, Progress)) == 4
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (again / file).read_bytes() == (out / file).read_bytes()


def test_a_base_in_16_bits_is_tuned_in_float32_as_the_same_base_in_float32(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights stay in the file in 16 bits; the steps are those of the widened weights."""
    monkeypatch.setattr(mapped, "KEPT", 200)
    network = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    losses, bases = [], []
    made = tune_code._adapted
    monkeypatch.setattr(tune_code, "_adapted", lambda *given: bases.append(made(*given)) or bases[-1])
    for dtype in (torch.bfloat16, torch.float32):
        folder = tmp_path / str(dtype)
        shutil.copytree(tiny_llama, folder)
        network.to(dtype).save_pretrained(folder)
        events: list[Event] = []
        options = OPTIONS.model_copy(update={"gradient_checkpointing": "on", "dropout": 0.0})
        data = Dataset("rows", TRAIN, [], [])
        tune(
            folder,
            data,
            options,
            tmp_path / f"{dtype}-out",
            work=folder / "work",
            threads=1,
            emit=events.append,
        )
        losses.append(
            [event.value for event in events if isinstance(event, Measured) and event.metric == "loss"]
        )
    stored = {str(base.get_parameter(f"base_model.model.{HEAD}").dtype) for base in bases}
    assert stored == {"torch.bfloat16", "torch.float32"}
    assert losses[0][-1] < losses[0][0] - 1
    assert losses[0] == pytest.approx(
        losses[1], abs=5e-3
    )  # the first adapter's random weights are rounded to 16 bits


def test_a_checkpoint_that_was_not_finished_is_not_resumed_from(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, out = run()

    def half(tensors: Any, path: Path, metadata: Any = None) -> None:
        save_file(tensors, path, metadata=metadata)
        if path.name == "optimizer.safetensors" and "checkpoint-5" in str(path):
            raise Killed

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(Killed):
        run(name="killed")
    monkeypatch.undo()
    work = tmp_path / "killed-work"
    assert [folder.name for folder in work.glob("checkpoint-*")] == ["checkpoint-3"]
    damaged = work / "checkpoint-9"  # what a kill while an old checkpoint was being removed may leave
    damaged.mkdir()
    (damaged / "best.safetensors").write_bytes(b"")
    _, again = run(name="killed")
    assert (again / "adapter_model.safetensors").read_bytes() == (
        out / "adapter_model.safetensors"
    ).read_bytes()


def test_a_checkpoint_of_other_inputs_is_not_resumed_from(run: Any) -> None:
    with pytest.raises(Killed):
        run(emit=kill_at(4))
    done: list[Event] = []
    run(OPTIONS.model_copy(update={"learning_rate": 1e-3}), emit=done.append)
    assert next(event.done for event in done if isinstance(event, Progress)) == 1


def test_a_finished_run_is_written_again_without_a_step(run: Any) -> None:
    first, out = run()
    before = (out / "adapter_model.safetensors").read_bytes()
    events: list[Event] = []
    again, _ = run(emit=events.append)
    assert not [event for event in events if isinstance(event, Progress)]
    assert again == first
    assert (out / "adapter_model.safetensors").read_bytes() == before


def test_stops_early_and_keeps_the_best_weights(run: Any, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"learning_rate": 1e-2, "epochs": 6.0, "patience": 2})
    messages = (
        {"role": "user", "content": "Open?"},
        {"role": "assistant", "content": "violet turbine harmonica"},
    )
    other = [Row("other", messages)]  # learning to open valves makes this answer less likely
    values: dict[int, float] = {}

    def emit(event: Event) -> None:
        if isinstance(event, Measured) and event.metric == "validation_loss" and event.step:
            values[event.step] = event.value

    summary, out = run(options, validation=other, emit=emit)
    steps = list(values)
    assert summary["steps"] == steps[-1] < 30
    assert summary["best_step"] == min(values, key=values.__getitem__) == steps[-3]
    assert summary["validation_loss"] == values[summary["best_step"]]
    last = load_file(tmp_path / "run-work" / f"checkpoint-{steps[-1]}" / "adapter_model.safetensors")
    best = load_file(out / "adapter_model.safetensors")
    assert not any(torch.equal(best[name], tensor) for name, tensor in last.items() if "lora_B" in name)


def test_without_validation_rows_the_last_weights_are_taken(run: Any, tmp_path: Path) -> None:
    summary, out = run(validation=[])
    assert summary["validation_loss"] is None
    assert summary["best_step"] == summary["steps"] == 10
    last = load_file(tmp_path / "run-work" / "checkpoint-10" / "adapter_model.safetensors")
    for name, tensor in load_file(out / "adapter_model.safetensors").items():
        assert torch.equal(tensor, last[name])


def test_accumulated_batches_make_the_same_steps_as_one_large_batch(run: Any) -> None:
    losses = []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        split = {"batch_size": size, "gradient_accumulation": accumulate, "dropout": 0.0, "warmup_ratio": 0.0}
        events: list[Event] = []
        run(
            OPTIONS.model_copy(update=split),
            TRAIN[:4],
            validation=[],
            emit=events.append,
            name=f"batch-{size}",
        )
        losses.append(
            [event.value for event in events if isinstance(event, Measured) and event.metric == "loss"]
        )
    assert losses[0][1] < losses[0][0] - 0.05
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert losses[2] == pytest.approx(losses[0], abs=2e-3)


def test_loss_on_the_supervised_places_is_the_models_own(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    batch = collate(encoded(tiny_llama, TRAIN[:5])[0])
    mask = torch.arange(batch["input_ids"].shape[1]) < batch["lengths"][:, None]
    assert not mask.all()  # rows of several lengths: there is padding
    total, count = answer_loss(model, model.get_output_embeddings(), batch)
    own = model(input_ids=batch["input_ids"], attention_mask=mask.long(), labels=batch["labels"]).loss
    assert count == int((batch["labels"] != -100).sum())
    assert (total / count).item() == pytest.approx(own.item(), abs=1e-5)


def test_order_is_a_function_of_seed_and_epoch_and_wastes_little() -> None:
    choose = random.Random(3)
    lengths = [choose.randint(20, 400) for _ in range(203)]

    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGroupedSampler(lambda epoch: lengths, 8, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert sorted(order(1, 0)) == list(range(203))

    def padded(places: list[int]) -> int:
        batches = [places[i : i + 8] for i in range(0, len(places), 8)]
        return sum(len(batch) * max(lengths[place] for place in batch) for batch in batches)

    assert padded(order(1, 0)) < 1.1 * sum(lengths)
    assert padded(list(range(203))) > 1.5 * sum(lengths)


def test_a_loss_that_is_not_finite_ends_the_run(tiny_llama: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_llama.iterdir():
        (broken / file.name).symlink_to(file)
    weights = load_file(tiny_llama / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    (broken / "model.safetensors").unlink()
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match="not a finite number at step 1") as error:
        tune(
            broken,
            Dataset("rows", TRAIN, VALIDATION, []),
            OPTIONS,
            tmp_path / "out",
            work=tmp_path / "work",
            threads=1,
        )
    assert "learning_rate" in error.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({"max_length": 16}, "max_length"), ({"modules": ["no_such_layer"]}, "all-linear")],
)
def test_options_that_cannot_be_used_are_refused(run: Any, changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(OPTIONS.model_copy(update=changes))
    assert hint in error.value.hint


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a machine without a GPU")
def test_qlora_without_a_gpu_is_refused(run: Any) -> None:
    with pytest.raises(ConfigError, match="CUDA"):
        run(OPTIONS.model_copy(update={"qlora": True}))


def test_rows_left_out_are_named_and_counted(run: Any) -> None:
    events: list[Event] = []
    long = Row(
        "too-long", ({"role": "user", "content": "on " * 99}, {"role": "assistant", "content": "ok"}), None, 7
    )
    options = OPTIONS.model_copy(update={"max_length": 80, "epochs": 0.5})
    summary, _ = run(options, train=[*TRAIN, long], emit=events.append)
    assert summary["left_out"] == 1
    alerts = [event for event in events if isinstance(event, Alert)]
    assert "row too-long (line 7)" in alerts[0].message


def test_bfloat16_base_learns_with_a_float32_adapter(run: Any) -> None:
    events: list[Event] = []
    summary, out = run(OPTIONS.model_copy(update={"dtype": "bfloat16"}), emit=events.append)
    values = [event.value for event in events if isinstance(event, Measured) and event.metric == "loss"]
    assert summary["dtype"] == "bfloat16"
    assert values[-1] < values[0] - 1
    assert {tensor.dtype for tensor in load_file(out / "adapter_model.safetensors").values()} == {
        torch.float32
    }


def test_few_prepared_products_are_kept_unless_a_person_says_otherwise(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """oneDNN keeps 1,024 of them, which is 0.5 GiB with rows of many lengths."""
    bounded, chosen = PREPARED_PRODUCTS
    for name in PREPARED_PRODUCTS:
        monkeypatch.setenv(name, "")
    monkeypatch.delenv(bounded)
    monkeypatch.setenv(chosen, "7")
    run()
    assert (os.environ[bounded], os.environ[chosen]) == (PREPARED_PRODUCTS[bounded], "7")
