"""The wheel as an app gets it: only `edgekit` is importable, it answers without torch, and it names missing parts."""

import importlib.metadata
import json
import os
import pty
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.parts import install_line, missing_part

SPOKEN = os.environ | {"COLUMNS": "200"}
ROOT = Path(__file__).parents[1]


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)


def in_a_terminal(command: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `command` with a terminal on its input and output, which the terminal app asks for."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            _, said = process.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    return subprocess.CompletedProcess(process.args, process.returncode, "", said)


def needed(name: str, seen: dict[str, str]) -> dict[str, str]:
    """The distribution `name` and all it requires here, without extras, with their installed versions."""
    from packaging.requirements import Requirement

    if name.lower() not in seen:
        distribution = importlib.metadata.distribution(name)
        seen[name.lower()] = distribution.version
        for text in distribution.requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed(requirement.name, seen)
    return seen


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT)
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="session")
def device(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel and what it requires, and nothing else.

    The packages are linked from this environment, so that nothing is compiled or fetched a second time.
    """
    folder = tmp_path_factory.mktemp("device") / "venv"
    venv.create(folder)  # without pip, which takes longer to install than the wheel
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip())
    install = ("install", "--no-deps", "--no-index", "--no-compile", wheel)
    done = run(sys.executable, "-m", "pip", "--python", python, *install)
    assert done.returncode == 0, done.stderr
    names = needed("edgekit", {})
    del names["edgekit"]
    for name in names:
        distribution = importlib.metadata.distribution(name)
        tops = {
            file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")
        }
        for top in tops:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return python


def test_the_wheel_holds_real_files_under_edgekit_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"edgekit", next(top for top in tops if top.endswith(".dist-info"))}
    for part in (
        "edgekit/export/gguf/write.py",
        "edgekit/runtimes/llamacpp.py",
        "edgekit/profiles/targets/cpu-int4.toml",
        "edgekit/data/calibration.txt",
        "edgekit/data/demo_intents.toml",
        "edgekit/field/incidents/runbooks/drift.md",
        "edgekit/py.typed",
    ):
        assert part in names
    assert not [name for name in names if name.endswith(".gz")], "the recorded demo stays in the repository"


def test_only_edgekit_is_importable(device: Path) -> None:
    for module, there in {
        "edgekit": True,
        "export": False,
        "runtimes": False,
        "profiles": False,
        "torch": False,
    }.items():
        assert (run(device, "-c", f"import {module}", cwd=device.parent).returncode == 0) is there, module


def test_help_and_run_work_without_torch(device: Path, tiny_build) -> None:
    program = device.parent / "edgekit"
    done = run(program, "--help", cwd=device.parent)
    assert done.returncode == 0 and "build" in done.stdout
    for format in ("gguf", "onnx"):
        done = run(
            program,
            "run",
            tiny_build.bundle,
            "close job 4512",
            "--format",
            format,
            "--json",
            cwd=device.parent,
        )
        assert done.returncode == 0, done.stderr
        assert "answer" in json.loads(done.stdout)


@pytest.mark.parametrize(
    "verb",
    [
        ["verify", "BUNDLE"],
        ["targets", "list"],
        ["doctor"],
        ["monitor", "--state", "STATE", "--once"],
        ["monitor", "--state", "STATE", "--device", "line-3=http://127.0.0.1:9", "--once", "--json"],
        ["incident", "list", "--state", "STATE"],
        ["releases", "list", "--state", "STATE"],
    ],
    ids=lambda verb: " ".join(verb[:4:3]),
)
def test_what_needs_no_extra_part_runs_there(
    device: Path, tiny_build: Any, tmp_path: Path, verb: list[str]
) -> None:
    words = {"BUNDLE": str(tiny_build.bundle), "STATE": str(tmp_path)}
    done = run(device.parent / "edgekit", *(words.get(word, word) for word in verb), cwd=tmp_path, env=SPOKEN)
    assert done.returncode != 4 and "not installed" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("part", "verb"),
    [
        ("serve", ["serve", "BUNDLE"]),
        ("tui", ["tui", "--demo"]),
        ("build", ["build", "--model", "MODEL"]),
        ("build", ["tune", "--model", "MODEL"]),
        ("build", ["merge", "MODEL", "ADAPTER"]),
        ("build", ["export", "MODEL"]),
        ("build", ["quantize", "MODEL"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_verb_without_its_part_exits_4_with_the_pip_line(
    device: Path, tiny_build: Any, tmp_path: Path, part: str, verb: list[str]
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    words = {"BUNDLE": tiny_build.bundle, "MODEL": tiny_build.model, "ADAPTER": adapter}
    typed = [device.parent / "edgekit", *(words.get(word, word) for word in verb)]
    done = in_a_terminal(typed, tmp_path) if part == "tui" else run(*typed, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 4, said
    assert f"pip install 'edgekit[{part}]'" in said and "Traceback" not in said


def requirements(part: str) -> set[str]:
    """Names of the distributions that the installed metadata lists for `part`; the base is an empty word."""
    from packaging.requirements import Requirement

    found = set()
    for text in importlib.metadata.requires("edgekit") or []:
        requirement = Requirement(text)
        if requirement.marker is None or (
            part and requirement.marker.evaluate({"extra": part}) and "extra" in str(requirement.marker)
        ):
            found.add(requirement.name)
    return found


@pytest.mark.parametrize("part", ["", "serve", "tui", "build", "qlora", "instructions"])
def test_every_package_of_a_part_leads_to_a_part_that_holds_it(part: str) -> None:
    import_names = {"llama-cpp-python": "llama_cpp"}
    own = requirements(part) - (requirements("") if part else set())
    assert own
    for name in own:
        module = import_names.get(name, name.replace("-", "_"))
        said = missing_part(ModuleNotFoundError(name=f"{module}.inner")).hint
        named = said.removeprefix("pip install ").strip("'").removeprefix("edgekit").strip("[]")
        assert name in requirements(named), (name, said)


def test_all_holds_every_part_that_needs_no_special_machine() -> None:
    assert requirements("all") >= requirements("serve") | requirements("tui") | requirements("build")


def test_a_package_that_only_others_need_leads_to_everything() -> None:
    assert missing_part(ModuleNotFoundError(name="anyio")).hint == "pip install 'edgekit[all]'"


def test_packages_of_two_parts_are_one_line() -> None:
    assert install_line("textual", "prometheus_client") == "pip install 'edgekit[tui]'"
    assert install_line("torch", "starlette", "numpy") == "pip install 'edgekit[build,serve]'"
