"""A logits processor sees what each token is chosen from, and what it forbids is not chosen, in every runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from scipy.special import log_softmax, logsumexp

from edgekit.base.errors import ConfigError
from edgekit.base.events import ignore
from edgekit.device.isolated import _Server, open_isolated
from edgekit.device.likelihood import likelihoods
from edgekit.export.gguf import write as gguf
from edgekit.export.onnx import export as onnx
from edgekit.models.sampling import Sampling
from edgekit.registry import ExportContext, HasHiddenStates, load
from edgekit.targets.target import OnnxExport

PROMPT = [1, *range(100, 120)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_small(tmp_path_factory.mktemp("small") / "llama")


@pytest.fixture(scope="module", params=["torch", "llama.cpp", "onnxruntime"])
def model(request: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    out = tmp_path_factory.mktemp("out")
    if request.param == "llama.cpp":
        gguf.write(folder, out / "model.gguf", ignore)
        path = out / "model.gguf"
    elif request.param == "onnxruntime":
        path = out / "onnx"
        onnx.export(folder, path, OnnxExport(format="onnx", precision="fp32"), ExportContext(folder), ignore)
    else:
        path = folder
    opened = load("runtimes", request.param)(path, threads=1, context=128)
    yield opened
    opened.close()


def test_it_sees_the_logits_of_each_step_and_the_ids_so_far(model: Any) -> None:
    seen: list[tuple[list[int], np.ndarray]] = []
    answer = list(
        model.generate(PROMPT, 6, process=lambda ids, logits: seen.append((list(ids), logits.copy())))
    )
    assert answer == list(model.generate(PROMPT, 6))
    assert [ids for ids, _ in seen] == [answer[:n] for n in range(len(seen))]
    rows = model.logits([*PROMPT, *answer])[len(PROMPT) - 1 :]
    for step, (_, logits) in enumerate(seen):
        assert logits.shape == (model.vocab_size,)
        np.testing.assert_allclose(logits, rows[step], atol=2e-2 * rows[step].std())


def test_logits_from_a_position_on_are_those_rows_of_all(model: Any) -> None:
    whole = model.logits(PROMPT)
    for first in (0, 1, 7, len(PROMPT) - 1):
        rows = model.logits(PROMPT, first)
        assert rows.shape == (len(PROMPT) - first, model.vocab_size)
        np.testing.assert_allclose(rows, whole[first:], atol=1e-3 * whole.std())


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=3)])
def test_what_it_forbids_is_not_chosen(model: Any, sampling: Sampling) -> None:
    allowed = [7, 11, 400]

    def only(ids: Sequence[int], logits: np.ndarray) -> None:
        kept = logits[allowed].copy()
        logits[:] = -np.inf
        logits[allowed] = kept

    answer = list(model.generate(PROMPT, 8, sampling, process=only))
    assert len(answer) == 8 and set(answer) <= set(allowed)


@pytest.mark.parametrize("temperature", [1e-38, 1e-12, 1e-5])
def test_a_very_low_temperature_never_chooses_a_forbidden_token(model: Any, temperature: float) -> None:
    allowed = [200, 201, 202]

    def forbid(ids: Sequence[int], logits: np.ndarray) -> None:
        kept = logits[allowed].copy()
        logits[:] = -np.inf
        logits[allowed] = kept

    greedy = list(model.generate(PROMPT, 4, process=forbid))
    assert set(greedy) <= set(allowed)
    answer = list(model.generate(PROMPT, 4, Sampling(temperature, 1.0, 3), process=forbid))
    assert len(answer) == 4 and set(answer) <= set(allowed)
    if temperature < 1e-5:
        assert answer == greedy


ANSWERS = [[130, 131], [130], [200, 7, 44, 130, 91], [130, 131], []]


def test_the_likelihood_of_an_answer_is_that_of_its_tokens_and_a_stop(model: Any) -> None:
    """Whether the prompt is computed once or with each answer, and whatever was scored before."""
    found = likelihoods(model, PROMPT, ANSWERS)
    assert found[0] == found[3]
    for answer, value in zip(ANSWERS, found, strict=True):
        rows = log_softmax(model.logits([*PROMPT, *answer])[len(PROMPT) - 1 :].astype(float), axis=1)
        expected = sum(rows[place][token] for place, token in enumerate(answer))
        expected += logsumexp(rows[-1][sorted(model.stop_ids)])
        assert value == pytest.approx(expected, abs=0.02 * max(1, len(answer)) * rows.std())


def test_a_child_process_scores_answers_as_the_model_does(folder: Path, tmp_path: Path) -> None:
    gguf.write(folder, tmp_path / "model.gguf", ignore)
    inside = load("runtimes", "llama.cpp")(tmp_path / "model.gguf", threads=1, context=128)
    child = open_isolated("llama.cpp", tmp_path / "model.gguf", threads=1, context=128)
    try:
        assert likelihoods(child, PROMPT, ANSWERS) == pytest.approx(inside.score_answers(PROMPT, ANSWERS))
        for opened in (inside, child):
            with pytest.raises(ConfigError, match="exceed the context of 128"):
                opened.score_answers(PROMPT, [[130] * 120])
    finally:
        child.close()
        inside.close()


def test_hidden_states_are_those_of_the_last_layer(folder: Path, tmp_path: Path) -> None:
    """Their product with the head gives the logits, in the model's own process and in a child."""
    gguf.write(folder, tmp_path / "model.gguf", ignore)
    reference = load("runtimes", "torch")(folder, threads=1, context=128)
    head = reference._model.get_output_embeddings().weight.detach().float().numpy()
    inside = load("runtimes", "llama.cpp")(tmp_path / "model.gguf", threads=1, context=128)
    child = open_isolated("llama.cpp", tmp_path / "model.gguf", threads=1, context=128)
    try:
        for ids in (PROMPT, PROMPT[:7]):
            before = inside.logits(ids)
            for opened in (reference, inside, child):
                state = opened.hidden_state(ids)
                last = opened.logits(ids)[-1]
                np.testing.assert_allclose(head @ state, last, atol=2e-2 * last.std())
            np.testing.assert_array_equal(inside.logits(ids), before)
        for opened in (inside, child, reference):
            with pytest.raises(ConfigError, match="exceed"):
                opened.hidden_state([1] * 200)
    finally:
        for opened in (child, inside, reference):
            opened.close()


def test_a_runtime_without_hidden_states_says_so(model: Any) -> None:
    """A child process asks for them only where the runtime has them."""
    shows = model.name != "onnxruntime"
    assert isinstance(model, HasHiddenStates) == shows
    facts = _Server(None, model).facts()  # type: ignore[arg-type]
    assert facts["hidden_states"] == shows
