"""The wheel as a device gets it: only `edgekit` is importable, and it answers without torch."""

import importlib.metadata
import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)


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
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").stdout.strip())
    done = run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
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
        "edgekit/data/demo_intents.toml",
        "edgekit/app/demo/build.json.gz",
        "edgekit/app/demo/bundle.json.gz",
        "edgekit/app/demo/day.json.gz",
        "edgekit/field/incidents/runbooks/drift.md",
        "edgekit/py.typed",
    ):
        assert part in names


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


def test_building_there_says_what_to_install(device: Path) -> None:
    done = run(device.parent / "edgekit", "build", cwd=device.parent)
    assert done.returncode == 4 and "pip install" in done.stderr and "Traceback" not in done.stderr
