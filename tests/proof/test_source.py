"""What was read of a source is held against the source itself."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from faults import hostile

from edgekit.base.cache import Cache
from edgekit.base.errors import CorruptError, StageError
from edgekit.base.events import Event, GateResult, ignore
from edgekit.export.gguf import write as exporter
from edgekit.models import gguf_source
from edgekit.models.source import resolve
from edgekit.proof import source
from edgekit.proof.source import bring_in, prove
from edgekit.proof.texts import TEXTS


def test_a_tokenizer_read_wrongly_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own reader drops the splitting of digits, and nothing else complains."""
    monkeypatch.setattr(gguf_source, "mend_tokenizer", lambda tokenizer, path: None)
    with pytest.raises(StageError, match=r"source\.tokenizer_identity"):
        bring_in(Cache(tmp_path, ignore), resolve("smollm2-135m"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("source")
    model = tiny.make_small(folder / "model")
    exporter.write(model, folder / "gguf", ignore)
    return folder / "gguf", model


def test_a_source_is_held_against_several_hundred_positions(file: tuple[Path, Path]) -> None:
    events: list[Event] = []
    prove(*file, events.append)
    gates = {event.name: event for event in events if isinstance(event, GateResult)}
    gate = gates["source.mean_kld_nats"]
    assert gate.passed and gate.n is not None and gate.n >= 500
    assert f"{gate.n} positions of 3 texts and 8 prompts" == gate.detail
    assert gate.low is not None and gate.low <= gate.value <= (gate.high or 0)


def test_other_weights_than_the_sources_are_refused(file: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"source\.mean_kld_nats"):
        prove(file[0], tiny.make_small(tmp_path / "other", seed=1), ignore)


def even(mean: float) -> Callable[..., np.ndarray]:
    """Distances that are the same everywhere."""
    return lambda found, expected: np.full(len(found), mean)


def in_one_place(mean: float) -> Callable[..., np.ndarray]:
    """Distances that all lie in the last prompt."""
    lengths: list[int] = []

    def divergence(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
        lengths.append(len(found))
        is_last = len(lengths) == len(TEXTS) + source.CONVERSATIONS
        return np.full(len(found), is_last * mean * sum(lengths) / len(found))

    return divergence


def test_a_distance_below_its_limit_passes(file: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "kl_divergence", even(0.9 * source.KLD_LIMIT_NATS))
    prove(*file, ignore)


@pytest.mark.parametrize(
    ("distances", "words"),
    [(even(1.1 * source.KLD_LIMIT_NATS), "positions"), (in_one_place(0.9 * source.KLD_LIMIT_NATS), "upper bound")],
)  # fmt: skip
def test_a_distance_above_its_limit_or_in_one_place_alone_is_refused(
    file: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, distances: Callable[..., np.ndarray], words: str
) -> None:
    """A mean within the limit that rests on one of eleven sequences may be far beyond it on other texts."""
    monkeypatch.setattr(source, "kl_divergence", distances)
    with pytest.raises(StageError, match=rf"source\.mean_kld_nats.*{words}.*Nothing was built"):
        prove(*file, ignore)


def test_a_source_that_ends_its_runtime_does_not_end_the_build(
    file: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules are taken out of the child alone, so that llama.cpp meets what they refuse."""
    copy = Path(shutil.copyfile(file[0], tmp_path / "model.gguf"))
    hostile.GGUF["billions of layers"][0](copy)
    hostile.take_out_rules(tmp_path, monkeypatch.setenv)
    with pytest.raises(CorruptError, match=r"llama\.cpp crashed while opening it \(SIGABRT"):
        prove(copy, file[1], ignore)
