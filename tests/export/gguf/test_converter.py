"""The files of llama.cpp's converter are kept as the pinned archive holds them, or not at all."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import ConfigError, CorruptError, MissingPartError, StageError
from edgekit.cli import main
from edgekit.export.gguf import converter

ROOT = Path(__file__).parents[3]
TOP = f"llama_cpp_python-{converter.VERSION}/vendor/llama.cpp"
FILES = {
    "convert_hf_to_gguf.py": "print('converter')\n",
    "conversion/__init__.py": 'TEXT_MODEL_MAP: dict[str, str] = {"PhiForCausalLM": "phi"}\n',
    "conversion/phi.py": "",
    "gguf-py/gguf/__init__.py": "",
    "LICENSE": "MIT\n",
}
OTHERS = {
    "src/llama.cpp": "",
    "gguf-py/README.md": "",
    "conversion/../../../../outside.py": "",
    "ggml/x.py": "",
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small archive in the place of llama-cpp-python's, with its digests pinned, that pip "downloads"."""
    (tmp_path / "published").mkdir()
    path = tmp_path / "published" / f"llama_cpp_python-{converter.VERSION}.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        for name, text in {**FILES, **OTHERS}.items():
            member = tarfile.TarInfo(f"{TOP}/{name}")
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo(f"{TOP}/conversion/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(link)
    for name, text in FILES.items():
        (tmp_path / "plain" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plain" / name).write_text(text)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(converter, "ARCHIVE_SHA256", sha256_file(path))
    monkeypatch.setattr(converter, "FILES_DIGEST", converter.digest(tmp_path / "plain"))
    monkeypatch.setattr(converter, "_download", lambda work: Path(shutil.copy(path, work)))
    return path


def test_only_the_converters_files_are_kept(archive: Path, tmp_path: Path) -> None:
    assert converter.kept() is None
    folder = converter.fetch()
    assert converter.kept() == folder == tmp_path / "cache" / "edgekit" / f"llama.cpp-{converter.VERSION}"
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert found == set(FILES)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert not list(tmp_path.rglob("outside.py"))


def test_what_is_there_is_not_fetched_again(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converter.fetch()
    monkeypatch.setattr(converter, "_download", lambda work: pytest.fail("downloaded again"))
    assert converter.fetch() == folder


def test_changed_files_are_not_used_and_fetched_anew(archive: Path) -> None:
    folder = converter.fetch()
    for file in ("conversion/phi.py", "convert_hf_to_gguf.py"):
        (folder / file).write_text("import os\n")
        assert converter.kept() is None
        assert converter.fetch() == folder == converter.kept()


@pytest.mark.parametrize("pinned", ["ARCHIVE_SHA256", "FILES_DIGEST"])
def test_another_archive_is_refused_and_nothing_is_kept(
    pinned: str, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converter, pinned, "0" * 64)
    with pytest.raises(CorruptError, match=archive.name) as caught:
        converter.fetch()
    assert "Nothing was kept" in (caught.value.hint or "")
    assert not list(converter.place().parent.iterdir())


def test_another_version_of_the_runtime_is_refused(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9.9")
    with pytest.raises(ConfigError, match=r"9\.9\.9 is installed"):
        converter.fetch()


class Pip:
    """Stands in for the process in which pip runs."""

    def __init__(self, said: str) -> None:
        self.said = said
        self.command: list[str] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.command = command
        return subprocess.CompletedProcess(command, 1, "", self.said)


def test_pip_downloads_by_hash_and_its_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pip = Pip(
        "ERROR: Could not find a version\n\nERROR: No matching distribution found for llama-cpp-python\n"
    )
    monkeypatch.setattr("subprocess.run", pip)
    with pytest.raises(StageError, match="No matching distribution"):
        converter._download(tmp_path)
    assert pip.command[:4] == [sys.executable, "-m", "pip", "download"] and "--require-hashes" in pip.command
    assert converter.ARCHIVE_SHA256 in (tmp_path / "requirements.txt").read_text()
    assert not any("://" in word for word in pip.command)  # which index to ask is pip's own setting
    pip.said = f"{sys.executable}: No module named pip"
    with pytest.raises(MissingPartError, match="pip"):
        converter._download(tmp_path)


def test_the_pinned_archive_is_the_one_that_is_installed() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith(f"{converter.PACKAGE}=="))
    assert lines[place].split()[0] == f"{converter.PACKAGE}=={converter.VERSION}"
    assert converter.ARCHIVE_SHA256 in lines[place + 1]


def test_setup_says_where_and_how_many(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["setup", "converter", "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(converter.place()), "architectures": ["PhiForCausalLM"],
    }  # fmt: skip


def test_a_checkout_without_a_table_of_architectures_lists_none(tmp_path: Path) -> None:
    assert converter.architectures(tmp_path) == frozenset()
    (tmp_path / "conversion").mkdir()
    (tmp_path / converter.NAMES).write_text("TEXT_MODEL_MAP: dict[str, str] = {\n")
    assert converter.architectures(tmp_path) == frozenset()


@pytest.mark.skipif(converter.kept() is None, reason=f"no converter of llama.cpp; keep it: {converter.SETUP}")
def test_the_list_of_architectures_is_what_the_kept_converter_says() -> None:
    command = [sys.executable, str(ROOT / "tools" / "list_architectures.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == json.loads(converter.ARCHITECTURES.read_text(encoding="utf-8"))
