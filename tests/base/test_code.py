"""The code that a stage depends on: followed through imports, told apart from comments, found without importing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.base import code

FILES = {
    "__init__.py": "",
    "first.py": '"""Does the work."""\nfrom typing import TYPE_CHECKING\nimport numpy\nfrom made_up import second\n'
    "if TYPE_CHECKING:\n    from made_up import typed\n"
    "def work():\n    import jinja2\n    from made_up.third import value\n    return value\n"
    'COMMAND = ["python", "-m", "made_up.started"]\n',
    "second.py": "LIMIT = 1\n",
    "third.py": "value = 2\n",
    "started.py": "print(3)\n",
    "relative.py": "from .second import LIMIT\nfrom . import third\nfrom .inner import deep\nfrom .... import nothing\n",
    "inner/__init__.py": "from . import deep\n",
    "inner/deep.py": "from ..started import anything\n",
    "typed.py": "class Only: pass\n",
    "other.py": "unrelated = 4\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "made_up"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    code.file_of.cache_clear()
    yield folder
    code.file_of.cache_clear()
    assert not any(name.partition(".")[0] == "made_up" for name in sys.modules), "it was imported"


def test_lazy_imports_and_started_processes_are_followed_and_those_for_type_checkers_are_not(
    package: Path,
) -> None:
    names = {name.removeprefix("made_up.") for name in code.code_of(["made_up.first"])}
    assert names - {"made_up"} == {"first", "second", "third", "started"}
    assert {"numpy", "jinja2", "python"} == set(code.versions_of(["made_up.first"]))


def test_a_package_has_the_modules_of_linked_folders_too(package: Path, tmp_path: Path) -> None:
    (package / "inner").rename(tmp_path / "elsewhere")
    (package / "inner").symlink_to(tmp_path / "elsewhere")
    assert {"made_up.inner", "made_up.inner.deep"} <= code.code_of(["made_up"]).keys()


def test_relative_imports_are_followed(package: Path) -> None:
    names = {name.removeprefix("made_up.") for name in code.code_of(["made_up.relative"])}
    assert names - {"made_up"} == {"relative", "second", "third", "inner", "inner.deep", "started"}
    assert set(code.versions_of(["made_up.relative"])) == {"python"}


@pytest.mark.parametrize("name", ["first", "second", "third", "started"])
def test_a_change_of_any_followed_module_changes_the_digests(package: Path, name: str) -> None:
    before = code.code_of(["made_up.first"])
    with (package / f"{name}.py").open("a") as file:
        file.write("more = 5\n")
    after = code.code_of(["made_up.first"])
    assert {each for each in before if before[each] != after[each]} == {f"made_up.{name}"}


@pytest.mark.parametrize("name", ["typed", "other"])
def test_a_change_of_another_module_changes_nothing(package: Path, name: str) -> None:
    before = code.code_of(["made_up.first"])
    (package / f"{name}.py").write_text("more = 5\n")
    assert code.code_of(["made_up.first"]) == before


def test_comments_docstrings_and_layout_do_not_count(package: Path) -> None:
    before = code.code_of(["made_up.first"])
    text = FILES["first.py"].replace("Does the work.", "Says it otherwise.") + "\n\n# a comment\n"
    (package / "first.py").write_text(text)
    assert code.code_of(["made_up.first"]) == before


def test_a_package_is_all_its_modules_and_an_unknown_name_is_an_error(package: Path) -> None:
    names = {name.removeprefix("made_up.") for name in code.code_of(["made_up"])}
    modules = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for name in FILES}
    assert names == {"made_up", *modules} - {"__init__"}
    with pytest.raises(ModuleNotFoundError, match="made_up.nothing"):
        code.code_of(["made_up.nothing"])


def test_what_only_tells_people_is_no_part_of_the_tuning() -> None:
    found = code.code_of(["edgekit.tuning"])
    assert {
        "edgekit.tuning.tune",
        "edgekit.tuning.encode",
        "edgekit.models.chat",
        "edgekit.data.rows",
    } <= found.keys()
    told = {f"edgekit.base.{name}" for name in ("console", "events", "errors", "cache", "locks")}
    assert not {
        name for name in found if name in told or name.startswith(("edgekit.app", "edgekit.commands"))
    }
    versions = code.versions_of(["edgekit.tuning"])
    assert {
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "tokenizers",
        "safetensors",
        "jinja2",
    } <= versions.keys()


def test_a_linked_family_is_found_at_its_link() -> None:
    assert "edgekit.export.gguf.vocab" in code.code_of(["edgekit.export.gguf.write"])
    assert "onnxruntime" in code.versions_of(["edgekit.runtimes.onnxruntime"])
