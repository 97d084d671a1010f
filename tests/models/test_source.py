"""Models as they come in: found, described without weights, and refused when they are not whole."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from edgekit import registry
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


EVIL = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig as Evil, LlamaForCausalLM as EvilModel, PreTrainedTokenizerFast as EvilTokenizer
"""


def hostile(model_folder: Path, folder: Path, **config: object) -> Path:
    """A copy of a model with Python files that leave a mark when they run, named by every `auto_map`."""
    shutil.copytree(model_folder, folder)
    for name in ("evil.py", "modeling_evil.py"):
        (folder / name).write_text(EVIL.format(mark=str(folder.parent / "RAN")))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(EVIL.format(mark=str(folder.parent / "RAN")))
    settings = {
        "config.json": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "modeling_evil.EvilModel"},
        "tokenizer_config.json": {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
    }
    for name, named in settings.items():
        found = json.loads((folder / name).read_text()) | {"auto_map": named}
        (folder / name).write_text(json.dumps(found | (config if name == "config.json" else {})))
    return folder


def test_no_code_of_a_model_folder_runs(small_model: Path, tmp_path: Path) -> None:
    """The maker's own files of Phi-3 name such code too, although transformers has the architecture."""
    folder = hostile(small_model, tmp_path / "hostile")
    assert model.describe(model.resolve(str(folder)))["architectures"] == ["LlamaForCausalLM"]
    model.bring_in(model.resolve(str(folder)), tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.py"))
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "out" / name).read_text())
        assert "auto_map" in json.loads((folder / name).read_text())  # it is not changed
    for place in (tmp_path / "out", folder):  # `verify` opens a folder where it is
        opened = registry.load("runtimes", "torch")(place)
        assert len(list(opened.generate(opened.encode("Hello"), 4))) <= 4
        opened.close()
    assert not list(tmp_path.rglob("RAN"))


def test_an_architecture_that_only_the_folder_has_is_refused(small_model: Path, tmp_path: Path) -> None:
    for number, config in enumerate(
        [{"architectures": ["EvilForCausalLM"]}, {"model_type": "evil"}, {"architectures": []}]
    ):
        folder = hostile(small_model, tmp_path / str(number), **config)
        with pytest.raises(UnsupportedError, match="requires custom code"):
            model.bring_in(model.resolve(str(folder)), tmp_path / f"out{number}")
    assert not list(tmp_path.rglob("RAN"))


def test_a_tokenizer_that_only_the_folder_has_is_refused(small_model: Path, tmp_path: Path) -> None:
    """Planted: transformers would read `tokenizer.json` in its own way instead, without a word."""
    folder = hostile(small_model, tmp_path / "hostile")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    for known in ("PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizerFast", "Qwen2Tokenizer"):
        file.write_text(json.dumps({**settings, "tokenizer_class": known}))
        model.describe(model.resolve(str(folder)))
    for unknown in ("EvilTokenizer", "EvilTokenizerFast"):
        file.write_text(json.dumps({**settings, "tokenizer_class": unknown}))
        with pytest.raises(UnsupportedError, match=f"transformers has no tokenizer {unknown}"):
            model.describe(model.resolve(str(folder)))
        with pytest.raises(UnsupportedError, match=f"transformers has no tokenizer {unknown}"):
            model.bring_in(model.resolve(str(folder)), tmp_path / unknown)
    del settings["auto_map"]
    file.write_text(json.dumps({**settings, "tokenizer_class": "EvilTokenizer"}))
    model.describe(model.resolve(str(folder)))
    assert not list(tmp_path.rglob("RAN"))


def test_a_tokenizer_that_is_only_in_tekken_json_is_refused(small_model: Path, tmp_path: Path) -> None:
    """transformers reads that file only with another package; without one its error was an `ImportError`."""
    folder = shutil.copytree(small_model, tmp_path / "mistral")
    (folder / "tekken.json").write_text("{}")
    model.read_config(folder)  # tokenizer.json is there
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedError, match="only in tekken.json") as caught:
        model.read_config(folder)
    assert "mistral-common" in caught.value.hint and str(folder) in caught.value.hint


def test_a_folder_comes_in_with_its_provenance(tiny_llama: Path, tmp_path: Path) -> None:
    model.bring_in(model.resolve(str(tiny_llama)), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "edgekit.json").read_text())
    assert found["base_model"] == "llama" and len(found["sha256"]) == 64
    assert (tmp_path / "out" / "model.safetensors").samefile(tiny_llama / "model.safetensors")
