"""Models as they come in: found, described without weights, and refused when they are not whole."""

import json
from pathlib import Path

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from edgekit.base.errors import ConfigError, CorruptError, UnsupportedError
from edgekit.containers.safetensors import read_safetensors
from edgekit.models import source as model


def test_a_built_in_name_is_a_file_of_an_installed_package() -> None:
    source = model.resolve("smollm2-135m", offline=True)
    assert source.kind == "gguf" and source.path == tiny.sample_gguf() and source.name == "smollm2-135m"
    assert model.digest(source) == model.BUILT_IN["smollm2-135m"].sha256


def test_what_is_given_tells_its_kind(tiny_llama: Path, tmp_path: Path) -> None:
    assert model.resolve(str(tiny_llama)).kind == "folder"
    assert model.resolve("org/name").kind == "hub"
    with pytest.raises(ConfigError, match="--offline"):
        model.resolve("org/name", offline=True)
    (tmp_path / "model.bin").touch()
    for wrong in (str(tmp_path / "model.bin"), str(tmp_path), "no such thing"):
        with pytest.raises(ConfigError):
            model.resolve(wrong)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_config_that_cannot_be_read_is_corrupt(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CorruptError, match=r"config\.json") as refused:
        model.read_config(tmp_path)
    assert "\n" not in refused.value.message and refused.value.hint


def test_the_parameter_count_is_the_models(tiny_llama: Path) -> None:
    with safe_open(tiny_llama / "model.safetensors", "np") as file:
        actual = sum(file.get_tensor(name).size for name in file.keys())  # noqa: SIM118 - not a dict
    assert model.parameter_count(model.read_config(tiny_llama)) == actual


def test_a_gguf_files_config_needs_no_weights() -> None:
    config = model.describe(model.resolve("smollm2-135m"))
    assert config["architectures"] == ["LlamaForCausalLM"] and config["hidden_size"] == 576
    assert model.parameter_count(config) == 134_515_008


def test_pickled_weights_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(UnsupportedError, match="pickled"):
        model.bring_in(model.resolve(str(folder)), tmp_path / "out")


def test_a_file_that_is_not_gguf_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not a model at all, but long enough")
    with pytest.raises(CorruptError, match="not a GGUF"):
        model.describe(model.resolve(str(tmp_path / "model.gguf")))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_cut_or_changed_header_passes(tiny_llama: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Cut anywhere, or with another header length, a safetensors file is told as corrupt, never read on."""
    whole = (tiny_llama / "model.safetensors").read_bytes()
    file = tmp_path / "model.safetensors"
    if data.draw(st.booleans()):
        file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    else:
        length = int.from_bytes(whole[:8], "little")
        wrong = data.draw(st.integers(0, 2**64 - 1).filter(lambda n: n != length))
        file.write_bytes(wrong.to_bytes(8, "little") + whole[8:])
    with pytest.raises(CorruptError):
        read_safetensors(file)


def test_a_folder_comes_in_with_its_provenance(tiny_llama: Path, tmp_path: Path) -> None:
    model.bring_in(model.resolve(str(tiny_llama)), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "edgekit.json").read_text())
    assert found["base_model"] == "llama" and len(found["sha256"]) == 64
    assert (tmp_path / "out" / "model.safetensors").samefile(tiny_llama / "model.safetensors")
