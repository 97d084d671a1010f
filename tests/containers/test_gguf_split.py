"""A GGUF model in parts: read as one, from whichever part is named, and refused when the parts do not fit."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
import tiny

from edgekit.base.cache import Cache
from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.base.events import ignore
from edgekit.containers.gguf import read_gguf
from edgekit.containers.gguf_content import check_gguf
from edgekit.containers.gguf_split import join, parts_of, read_whole, whole
from edgekit.export.gguf import write as exporter
from edgekit.models import source
from edgekit.proof.verify import verify_file
from edgekit.targets.target import Budget

TENSORS_EACH = 12
LOOSE = Budget(answer_top1_agreement=0.7, greedy_agreement=0.2)


def split(file: Path, folder: Path, name: str = "model") -> list[Path]:
    """Split a file with gguf's own writer, as llama.cpp's converter does with --split-max-tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / f"{name}.gguf", architecture, split_max_tensors=TENSORS_EACH)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=element)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{name}-*.gguf"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("whole")
    model = tiny.make_small(folder / "model")
    exporter.write(model, folder / "whole.gguf", ignore)
    return model, folder / "whole.gguf"


@pytest.fixture
def parts(small: tuple[Path, Path], tmp_path: Path) -> list[Path]:
    return split(small[1], tmp_path / "parts")


def test_the_joined_file_holds_what_the_parts_hold(
    small: tuple[Path, Path], parts: list[Path], tmp_path: Path
) -> None:
    assert len(parts) == 3
    join(parts, tmp_path / "joined.gguf")
    before, after = read_gguf(small[1]), check_gguf(tmp_path / "joined.gguf")
    assert after.metadata.keys() == before.metadata.keys()
    assert all(np.array_equal(after.metadata[key], before.metadata[key]) for key in before.metadata)  # type: ignore[arg-type]
    data = {name: np.memmap(name, np.uint8, "r") for name in (small[1], tmp_path / "joined.gguf")}
    for name, tensor in before.tensors.items():
        other = after.tensors[name]
        assert (tensor.shape, tensor.type) == (other.shape, other.type)
        ours, theirs = (
            data[file][place.offset : place.offset + place.nbytes]
            for file, place in zip(data, (tensor, other), strict=True)
        )
        assert (ours == theirs).all()
    gguf.GGUFReader(tmp_path / "joined.gguf")  # another parser reads it too


def test_llama_cpp_computes_the_same_from_the_parts_and_from_the_joined_file(
    parts: list[Path], tmp_path: Path
) -> None:
    def last(path: Path) -> np.ndarray:
        model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
        model.eval([5, 9, 40, 3])
        return np.array(model.scores[:4])

    join(parts, tmp_path / "joined.gguf")
    assert np.array_equal(last(parts[0]), last(tmp_path / "joined.gguf"))


@pytest.mark.parametrize("named", [0, 1, 2])
def test_any_part_names_the_model_as_a_source_and_in_verify(
    small: tuple[Path, Path], parts: list[Path], tmp_path: Path, named: int
) -> None:
    found = source.resolve(str(parts[named]))
    assert found.path == parts[0] and found.name == "model"
    config = source.describe(found)
    assert config["num_hidden_layers"] == 3 and config["tie_word_embeddings"] is True
    assert source.has_template(found) and source.digest(found) != source.digest(source.resolve(str(small[1])))
    cache = Cache(tmp_path / "cache", ignore)
    if named == 1:
        gates = verify_file(parts[named], found, [], LOOSE, cache, quick=True, threads=1)
        assert [gate.name for gate in gates if not gate.passed] == []
        assert "gguf.weights" in {gate.name for gate in gates}
        assert not list((tmp_path / "cache").rglob("joined-*"))


def test_a_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    for named in (parts[0], parts[2]):
        with pytest.raises(ConfigError, match=r"missing in .*: model-00002-of-00003\.gguf\."):
            source.resolve(str(named))
    with pytest.raises(ConfigError, match="is part 4 of 3"):
        parts_of(parts[0].with_name("model-00004-of-00003.gguf"))


def test_parts_of_different_models_are_refused(
    small: tuple[Path, Path], parts: list[Path], tmp_path: Path
) -> None:
    other = tiny.make_small(tmp_path / "other", num_hidden_layers=4)
    exporter.write(other, tmp_path / "other.gguf", ignore)
    foreign = split(tmp_path / "other.gguf", tmp_path / "foreign")
    shutil.copy(foreign[1], parts[1])
    with pytest.raises(CorruptError, match="does not belong to the other parts"):
        read_whole(parts[0])
    again = split(small[1], tmp_path / "again")
    again[1].write_bytes(again[2].read_bytes())
    with pytest.raises(CorruptError, match="says that it is part 2 of 3"):
        read_whole(again[0])
    swapped = split(small[1], tmp_path / "swapped")
    data = swapped[2].read_bytes()  # numbered as the second, so that its tensors are there twice
    swapped[1].write_bytes(
        data.replace(b"split.no" + struct.pack("<IH", 2, 2), b"split.no" + struct.pack("<IH", 2, 1))
    )
    with pytest.raises(CorruptError, match="another part holds too"):
        read_whole(swapped[0])


def test_a_damaged_part_is_refused_before_llama_cpp_sees_it(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.proof.prove.Subject.open", lambda *_: pytest.fail("it was opened"))
    parts[2].write_bytes(parts[2].read_bytes()[:-64])
    with pytest.raises(CorruptError):
        verify_file(
            parts[0], source.resolve(str(parts[0])), [], LOOSE, Cache(tmp_path / "c", ignore), quick=True
        )
    with pytest.raises(CorruptError), whole(parts[1], tmp_path):
        pass
    with pytest.raises(UnsupportedError, match="is one of 3 parts"):  # what takes one file alone
        check_gguf(parts[0])
