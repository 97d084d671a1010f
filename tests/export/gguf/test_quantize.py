"""llama.cpp quantizes as asked, weighs errors by the importance matrix, and fails in one clear error."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import torch
import transformers
import vocabularies
from numpy.typing import NDArray

import edgekit.export.gguf.quantize
from edgekit.base.errors import StageError
from edgekit.base.events import Alert, Event, Progress, ignore
from edgekit.export.gguf.imatrix import importance
from edgekit.export.gguf.quantize import file_type, llama_log, quantize, tensor_type, uses_importance
from edgekit.export.gguf.write import write
from edgekit.targets.target import GGUF_TYPES

ROWS = [[1, *range(300, 330)], [1, 5, 9, 400, 401, 402]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose rows fit blocks of 256."""
    small = vocabularies.for_transformers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "tokenizer", lambda: small)
        return tiny.make(tmp_path_factory.mktemp("model") / "llama", hidden_size=256, intermediate_size=256)


@pytest.fixture(scope="module")
def floats(model: Path) -> Path:
    """The same as a float GGUF file."""
    file = model.parent / "model.f32.gguf"
    write(model, file, ignore)
    return file


@pytest.fixture(scope="module")
def weights(model: Path) -> dict[str, NDArray[np.float32]]:
    return importance(model, ROWS)


def tensors(file: Path) -> dict[str, gguf.ReaderTensor]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def values(tensor: gguf.ReaderTensor) -> NDArray[np.float32]:
    read: NDArray[np.float32] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return read


@pytest.mark.parametrize("type", GGUF_TYPES)
def test_every_type_is_written(type: str, floats: Path, tmp_path: Path) -> None:
    quantize(floats, tmp_path / "out.gguf", tiny.gguf_options(type), threads=1)
    field = gguf.GGUFReader(tmp_path / "out.gguf").get_field("general.file_type")
    assert field is not None and field.contents() == file_type(type)
    original, written = tensors(floats), tensors(tmp_path / "out.gguf")
    assert original.keys() == written.keys()
    assert written["blk.1.attn_q.weight"].tensor_type == tensor_type(type)
    assert written["blk.1.attn_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    exact, rounded = values(original["blk.1.attn_q.weight"]), values(written["blk.1.attn_q.weight"])
    assert np.abs(exact - rounded).mean() < 0.25 * np.abs(exact).mean()


def test_the_same_bytes_with_any_number_of_threads(
    floats: Path, weights: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    for threads in (1, 2):
        quantize(
            floats,
            tmp_path / f"{threads}.gguf",
            tiny.gguf_options("Q4_K_M"),
            imatrix=weights,
            threads=threads,
        )
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "2.gguf").read_bytes()


def test_the_embedding_gets_its_own_type(floats: Path, tmp_path: Path) -> None:
    quantize(
        floats, tmp_path / "out.gguf", tiny.gguf_options("Q8_0", token_embedding_type="Q4_K_M"), threads=1
    )
    written = tensors(tmp_path / "out.gguf")
    assert written["token_embd.weight"].tensor_type == gguf.GGMLQuantizationType.Q4_K
    assert written["blk.0.ffn_up.weight"].tensor_type == gguf.GGMLQuantizationType.Q8_0


def test_importance_is_the_mean_square_of_what_a_layer_reads(
    model: Path, floats: Path, weights: dict[str, NDArray[np.float32]]
) -> None:
    network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    first = network.model.layers[0]
    with torch.no_grad():
        read = [first.input_layernorm(network.model.embed_tokens(torch.tensor(ids))) for ids in ROWS]
    expected = torch.cat(read).double().square().mean(0).numpy()
    assert np.allclose(weights["blk.0.attn_q.weight"], expected, rtol=1e-5)
    linear = {name for name, tensor in tensors(floats).items() if len(tensor.shape) == 2 and "blk" in name}
    assert weights.keys() == linear
    assert all(weights[name].shape == (tensors(floats)[name].shape[0],) for name in linear)


@pytest.mark.parametrize("type", ["Q4_0", "Q4_K_M"])
def test_importance_lowers_the_weighted_error(
    type: str, floats: Path, weights: dict[str, NDArray[np.float32]], tmp_path: Path
) -> None:
    quantize(floats, tmp_path / "plain.gguf", tiny.gguf_options(type), threads=1)
    quantize(floats, tmp_path / "weighed.gguf", tiny.gguf_options(type), imatrix=weights, threads=1)
    exact = tensors(floats)

    def error(file: Path) -> float:
        written = tensors(file)
        squares = [
            weight * (values(exact[name]) - values(written[name])) ** 2 for name, weight in weights.items()
        ]
        return float(sum(square.sum() for square in squares))

    assert error(tmp_path / "weighed.gguf") < 0.99 * error(tmp_path / "plain.gguf")


def test_types_below_eight_bits_use_importance() -> None:
    assert [type for type in GGUF_TYPES if not uses_importance(type)] == ["F32", "F16", "BF16", "Q8_0"]


FAULTS: dict[str, tuple[Callable[[Path], Path], dict[str, NDArray[np.float32]], str]] = {
    "no file": (lambda floats: floats.with_name("absent.gguf"), {}, "failed to load model"),
    "columns": (lambda floats: floats, {"blk.0.attn_q.weight": np.ones(5, np.float32)}, "imatrix size 5"),
    "not a number": (
        lambda floats: floats,
        {"blk.0.attn_q.weight": np.full(256, np.nan, np.float32)},
        "non-finite",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_names_its_cause_and_leaves_nothing(
    fault: str, floats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, imatrix, message = FAULTS[fault]
    with pytest.raises(StageError, match=message):
        quantize(source(floats), tmp_path / "out.gguf", tiny.gguf_options("Q4_0"), imatrix=imatrix, threads=1)
    assert not (tmp_path / "out.gguf").exists()
    assert capfd.readouterr() == ("", "")


def test_a_truncated_file_fails(floats: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(floats.read_bytes()[:-4096])
    with pytest.raises(StageError, match=r"cut\.gguf"):
        quantize(tmp_path / "cut.gguf", tmp_path / "out.gguf", tiny.gguf_options("Q4_0"), threads=1)
    assert not (tmp_path / "out.gguf").exists()


def test_progress_counts_tensors_and_a_fallback_is_said(tmp_path: Path) -> None:
    small = vocabularies.for_transformers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "tokenizer", lambda: small)
        write(tiny.make(tmp_path / "narrow"), tmp_path / "narrow.gguf", ignore)  # rows of 64
    events: list[Event] = []
    quantize(
        tmp_path / "narrow.gguf",
        tmp_path / "out.gguf",
        tiny.gguf_options("Q4_K_M"),
        threads=1,
        emit=events.append,
    )
    steps = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in steps] == list(range(1, int(steps[0].total) + 1))
    assert [event.level for event in events if isinstance(event, Alert)] == ["warning"]


def test_rows_that_llama_cpp_would_give_a_ruinous_type_are_kept_in_eight_bits(tmp_path: Path) -> None:
    small = vocabularies.for_transformers()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "tokenizer", lambda: small)
        write(tiny.make(tmp_path / "narrow"), tmp_path / "narrow.gguf", ignore)  # rows of 64
    out = tmp_path / "out.gguf"
    quantize(
        tmp_path / "narrow.gguf", out, tiny.gguf_options("Q5_K_M", tensor_types={"attn_q": "Q5_0"}), threads=1
    )
    found = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert "Q5_1" not in found.values()
    assert found["blk.0.attn_k.weight"] == found["blk.1.ffn_up.weight"] == "Q8_0"
    assert found["blk.0.attn_q.weight"] == "Q5_0"
    quantize(tmp_path / "narrow.gguf", out, tiny.gguf_options("Q4_1"), threads=1)
    assert "Q4_1" in {tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}


def test_a_llama_cpp_whose_log_names_no_types_is_refused(
    floats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edgekit.export.gguf.quantize, "SIZE", re.compile("another wording"))
    with pytest.raises(StageError, match="does not report the type"):
        quantize(floats, tmp_path / "out.gguf", tiny.gguf_options("Q4_0"), threads=1)
    assert not (tmp_path / "out.gguf").exists()


def test_the_log_goes_back_to_its_reader(floats: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with llama_log(lambda level, line: lines.append(line)):
        quantize(floats, tmp_path / "one.gguf", tiny.gguf_options("Q8_0"), threads=1)
        assert not lines
        with pytest.raises(StageError):
            quantize(tmp_path / "absent.gguf", tmp_path / "two.gguf", tiny.gguf_options("Q8_0"), threads=1)
        assert not lines


@pytest.mark.slow
def test_the_sample_model_answers_in_four_bits(tmp_path: Path) -> None:
    import llama_cpp

    from edgekit.models.source import bring_in, resolve

    bring_in(resolve("smollm2-135m"), tmp_path / "base")
    write(tmp_path / "base", tmp_path / "model.f32.gguf", ignore)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "base")
    rows = [tokenizer(text).input_ids for text in vocabularies.TEXT]
    quantize(
        tmp_path / "model.f32.gguf",
        tmp_path / "model.gguf",
        tiny.gguf_options("Q4_K_M"),
        imatrix=importance(tmp_path / "base", rows),
    )
    model = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=256, verbose=False)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = model.create_chat_completion(question, temperature=0, max_tokens=30)
    assert "Paris" in answer["choices"][0]["message"]["content"]
