"""A model on the hub: planned without its weights, held against the free disk, pinned to one commit."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import tiny

from edgekit import registry
from edgekit.base import hardware
from edgekit.base.errors import ConfigError
from edgekit.build import plan as planning
from edgekit.data.dataset import load_dataset
from edgekit.models import source as model

COMMITS = {None: "a" * 40, "main": "a" * 40, "v1": "b" * 40}


class Hub:
    """A hub of one repository, which remembers what was downloaded of which commit."""

    def __init__(self, folder: Path, snapshots: Path) -> None:
        self.folder, self.snapshots = folder, snapshots
        (folder / "merges.txt").touch()
        self.downloads: list[tuple[str, str]] = []

    def model_info(self, repository: str, *, revision: str | None, files_metadata: bool) -> Any:
        commit = COMMITS.get(revision, revision)
        if repository != "org/Tiny" or commit not in COMMITS.values():
            raise OSError(f"404: {repository} at {revision} not found\nRequest ID: 1")
        files = [SimpleNamespace(rfilename=file.name, size=file.stat().st_size) for file in self.files()]
        return SimpleNamespace(sha=commit, siblings=files)

    def snapshot_download(self, repository: str, *, revision: str, allow_patterns: list[str]) -> str:
        out = self.snapshots / revision
        out.mkdir(parents=True, exist_ok=True)
        for file in self.files():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                (out / file.name).write_bytes(file.read_bytes())
                self.downloads.append((file.name, revision))
        return str(out)

    def try_to_load_from_cache(self, repository: str, file: str, *, revision: str) -> str | None:
        path = self.snapshots / revision / file
        return str(path) if path.exists() else None

    def files(self) -> list[Path]:
        return sorted(file for file in self.folder.iterdir() if file.is_file())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tiny.make_small(tmp_path / "remote"), tmp_path / "snapshots")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=found.model_info))
    for name in ("snapshot_download", "try_to_load_from_cache"):
        monkeypatch.setattr(huggingface_hub, name, getattr(found, name))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(found.snapshots))
    return found


def planned(source: model.Source, tmp_path: Path) -> planning.Plan:
    target = registry.load("profiles", "targets").load("cpu-int4", [])
    return planning.plan(source, target, load_dataset("demo"), cache_dir=tmp_path, out=tmp_path)


def test_a_plan_downloads_no_weights_and_says_how_much_they_are(hub: Hub, tmp_path: Path) -> None:
    found = planned(model.resolve("org/Tiny"), tmp_path)
    assert found.architecture == "LlamaForCausalLM"
    names = {name for name, _ in hub.downloads}
    assert {"config.json", "tokenizer.json", "merges.txt"} <= names
    assert not [name for name in names if name.endswith(".safetensors")]
    size = sum(file.stat().st_size for file in hub.folder.glob("*.safetensors"))
    assert found.download_mib == round(size / 2**20)
    model.fetch(model.resolve("org/Tiny"))
    assert planned(model.resolve("org/Tiny"), tmp_path).download_mib == 0


def test_weights_are_not_downloaded_to_a_disk_without_room(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the hub's own cache counts, where the weights go."""
    monkeypatch.setattr(hardware, "free_disk_mib", lambda path: 1 if path == hub.snapshots else 10**6)
    found = planned(model.resolve("org/Tiny"), tmp_path)
    with pytest.raises(ConfigError, match="Not enough memory or disk"):
        found.check()
    assert not [name for name, _ in hub.downloads if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    "given, commit", [("org/Tiny", "a"), ("org/Tiny@v1", "b"), (f"org/Tiny@{'b' * 40}", "b")]
)
def test_a_revision_is_pinned_to_its_commit_which_the_model_notes(
    hub: Hub, tmp_path: Path, given: str, commit: str
) -> None:
    source = model.fetch(model.resolve(given))
    assert source.commit == commit * 40 and source.name == "tiny"
    assert {at for _, at in hub.downloads} == {commit * 40}
    model.bring_in(source, tmp_path / "out")
    noted = json.loads((tmp_path / "out" / model.PROVENANCE).read_text())
    assert noted["revision"] == commit * 40 and noted["base_model"] == "tiny"
    assert (tmp_path / "out" / "merges.txt").exists()


@pytest.mark.parametrize("given", ["org/Tiny@v9", "org/Other"])
def test_what_the_hub_does_not_know_is_said_in_one_line(hub: Hub, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model.fetch(model.resolve(given))
    assert given in caught.value.message and "404" in caught.value.message
    assert "\n" not in caught.value.message and "Check the name" in caught.value.hint
