"""A model on the hub: planned without its weights, pinned to one commit, downloaded, continued, and used offline."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_server
import huggingface_hub
import pytest
import tiny
from hub_server import Hub
from huggingface_hub import _tree_cache

from edgekit import registry
from edgekit.base import download, hardware
from edgekit.base import hub as base_hub
from edgekit.base.errors import ConfigError, CorruptError
from edgekit.base.events import Alert, Event, Progress, StageFinished, StageStarted
from edgekit.build import plan as planning
from edgekit.build.request import Order
from edgekit.data.dataset import load_dataset
from edgekit.models import hub as edgekit_hub
from edgekit.models import source as model

NAME = "org/Tiny"


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.make_small(tmp_path_factory.mktemp("remote") / "main")
    (folder / "merges.txt").write_text("a b\n")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights in the maker's own form")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    return folder


@pytest.fixture
def hub(remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    other = Path(shutil.copytree(remote, tmp_path / "v1"))
    (other / "NOTES.json").write_text("{}")
    with hub_server.running({(NAME, "main"): remote, (NAME, "v1"): other}) as found:
        for name, value in {
            "ENDPOINT": found.url,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HUGGINGFACE_CO_URL_TEMPLATE": found.url + "/{repo_id}/resolve/{revision}/{filename}",
        }.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        base_hub.listing.cache_clear()
        yield found
        base_hub.listing.cache_clear()


def planned(source: model.Source, tmp_path: Path) -> planning.Plan:
    target = registry.load("profiles", "targets").load("cpu-int4", [])
    return planning.plan(source, target, load_dataset("demo"), cache_dir=tmp_path, out=tmp_path)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_plan_downloads_no_weights_and_says_how_much_they_are(
    hub: Hub, remote: Path, tmp_path: Path
) -> None:
    found = planned(model.resolve(NAME), tmp_path)
    assert found.architecture == "LlamaForCausalLM" and found.parameters == 123_000_000
    names = set(hub.downloaded())
    assert {"config.json", "tokenizer.json", "merges.txt"} <= names
    assert not [name for name in names if name.endswith((".safetensors", ".bin"))]
    assert found.download_mib == round(len(weights(remote)) / 2**20)
    model.fetch(model.resolve(NAME))
    assert planned(model.resolve(NAME), tmp_path).download_mib == 0


def test_weights_are_not_downloaded_to_a_disk_without_room(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the hub's own cache counts, where the weights go."""
    cache = base_hub.cache_folder()
    monkeypatch.setattr(hardware, "free_disk_mib", lambda path: 1 if path == cache else 10**6)
    found = planned(model.resolve(NAME), tmp_path)
    with pytest.raises(ConfigError, match="Not enough memory or disk"):
        found.check()
    assert not hub.downloaded(".safetensors")


@pytest.mark.parametrize("form", ["after the name", "as an option", "as a commit", "both"])
def test_a_revision_is_pinned_to_its_commit_which_the_model_notes(
    hub: Hub, tmp_path: Path, form: str
) -> None:
    commit = hub.commit(NAME, "v1")
    at = {"as an option": "", "as a commit": f"@{commit}"}.get(form, "@v1")
    revision = "v1" if form in ("as an option", "both") else ""
    source = model.fetch(model.resolve(NAME + at, revision))
    assert source.commit == commit and source.name == "tiny" and source.path is not None
    assert (source.path / "NOTES.json").exists()  # which main does not have
    model.bring_in(source, tmp_path / "out")
    noted = json.loads((tmp_path / "out" / model.PROVENANCE).read_text())
    assert noted["revision"] == commit and noted["base_model"] == "tiny"
    assert (tmp_path / "out" / "merges.txt").exists()


def test_two_revisions_that_differ_and_a_revision_of_a_folder_are_refused(hub: Hub, remote: Path) -> None:
    with pytest.raises(ConfigError, match="two revisions"):
        model.resolve(f"{NAME}@v1", "main")
    with pytest.raises(ConfigError, match="needs a hub id"):
        model.resolve(str(remote), "main")
    order = Order(model=NAME, revision="v1")
    assert order.request().source.revision == "v1" and "--revision v1" in " ".join(order.arguments)


@pytest.mark.parametrize("given", [f"{NAME}@v9", "org/Other"])
def test_what_the_hub_does_not_know_is_said_in_one_line(hub: Hub, given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model.fetch(model.resolve(given))
    assert given in caught.value.message and "404" in caught.value.message
    assert "\n" not in caught.value.message and "Check the name" in caught.value.hint


def test_a_download_tells_its_progress_and_its_speed(hub: Hub, remote: Path) -> None:
    told: list[Event] = []
    source = model.fetch(model.resolve(NAME), told.append)
    assert source.path is not None and weights(source.path) == weights(remote)
    assert not (source.path / "consolidated.safetensors").exists()  # the same weights again
    said = told.pop(0)
    assert isinstance(said, Alert) and said.message.startswith("Downloading ") and "MiB" in said.message
    assert isinstance(told[0], StageStarted) and isinstance(told[-1], StageFinished)
    progress = [event for event in told if isinstance(event, Progress)]
    assert progress and progress[-1].unit == "MiB" and "MiB/s" in progress[-1].note
    assert 0 < progress[-1].done <= progress[-1].total


def interrupt(event: Event) -> None:
    if isinstance(event, Progress):
        raise KeyboardInterrupt


def test_an_interrupted_download_goes_on_where_it_stopped(
    hub: Hub, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr(download, "TOLD_EVERY_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        model.fetch(model.resolve(NAME), interrupt)
    (part,) = base_hub.cache_folder().glob("*/blobs/*.edgekit-part")
    already = part.stat().st_size
    assert 0 < already < len(weights(remote))
    hub.asked.clear()
    source = model.fetch(model.resolve(NAME))
    assert source.path is not None and weights(source.path) == weights(remote)
    ranges = hub.ranges("model.safetensors")
    assert ranges == [f"bytes={already}-"] and not part.exists()


def test_a_part_that_is_not_of_this_file_is_found_by_its_digest(
    hub: Hub, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    with pytest.raises(KeyboardInterrupt):
        model.fetch(model.resolve(NAME), interrupt)
    (part,) = base_hub.cache_folder().glob("*/blobs/*.edgekit-part")
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(CorruptError, match="damaged during its download"):
        model.fetch(model.resolve(NAME))
    source = model.fetch(model.resolve(NAME))
    assert source.path is not None and weights(source.path) == weights(remote)


def test_a_digest_that_is_a_path_is_never_written_to(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the hub's SHA-256 becomes a file's name in the cache."""
    listed = edgekit_hub.wanted

    def planted(*given: Any) -> list[base_hub.File]:
        return [replace(file, sha256="../../../planted") if file.sha256 else file for file in listed(*given)]

    monkeypatch.setattr(edgekit_hub, "wanted", planted)
    with pytest.raises(CorruptError, match="no valid SHA-256 for model.safetensors"):
        model.fetch(model.resolve(NAME))
    assert not list(base_hub.cache_folder().parent.rglob("*planted*"))


def test_offline_a_model_comes_from_the_cache_or_what_is_missing_is_named(
    hub: Hub, remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"hub cache .* does not have it"):
        model.resolve(NAME, offline=True)
    model.describe(model.resolve(NAME))  # its settings alone
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing, and --offline"):
        model.resolve(NAME, offline=True)
    model.fetch(model.resolve(NAME))
    hub.asked.clear()
    source = model.resolve(NAME, offline=True)
    assert source.commit == hub.commit(NAME, "main") and source.path is not None
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # as the environment says it
    assert model.fetch(model.resolve(NAME)).path == source.path
    assert planned(model.resolve(NAME), remote).download_mib == 0
    with pytest.raises(ConfigError, match="does not have it"):
        model.resolve(NAME, "v1", offline=True)


def test_an_incomplete_snapshot_is_continued_and_its_missing_files_are_named_offline(
    hub: Hub, remote: Path
) -> None:
    source = model.fetch(model.resolve(NAME))
    assert source.path is not None
    (source.path / "tokenizer_config.json").unlink()  # the others would make a model with another template
    with pytest.raises(ConfigError, match=r"a part of org/Tiny: tokenizer_config\.json is missing"):
        model.resolve(NAME, offline=True)
    (source.path / "README.md").unlink(missing_ok=True)  # which no model needs
    assert model.fetch(model.resolve(NAME)).path == source.path
    blob = (source.path / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:1000])  # cut by another program
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing"):
        model.resolve(NAME, offline=True)
    again = model.fetch(model.resolve(NAME)).path
    assert again is not None and weights(again) == weights(remote)
    assert model.resolve(NAME, offline=True).path == source.path


@pytest.mark.parametrize(
    ("has", "lacks"),
    [
        (["model-00001-of-00002.safetensors"], "model-00002-of-00002.safetensors, model.safetensors.index.json are"),
        (["model-00001-of-00002.safetensors", "model.safetensors.index.json"], "model-00002-of-00002.safetensors is"),
        ([], "model.safetensors is"),
    ],
)  # fmt: skip
def test_a_snapshot_without_a_list_of_its_files_lacks_the_other_shards(
    hub: Hub, has: list[str], lacks: str
) -> None:
    """Planted: what an interrupted download by an older huggingface_hub leaves."""
    source = model.fetch(model.resolve(NAME))
    assert source.path is not None
    shutil.rmtree(source.path.parents[1] / "trees")
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    assert model.resolve(NAME, offline=True).path == source.path
    (source.path / "model.safetensors").rename(source.path / "model-00001-of-00002.safetensors")
    if not has:
        (source.path / "model-00001-of-00002.safetensors").unlink()
    if "model.safetensors.index.json" in has:
        named = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (source.path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    with pytest.raises(ConfigError) as caught:
        model.resolve(NAME, offline=True)
    assert f"org/Tiny: {lacks} missing" in caught.value.message


def test_without_an_answer_of_the_hub_a_whole_model_comes_from_the_cache(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.describe(model.resolve(NAME))
    base_hub.listing.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="could not be downloaded"):
        model.fetch(model.resolve(NAME))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    source = model.fetch(model.resolve(NAME))
    base_hub.listing.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    told: list[Event] = []
    assert model.fetch(model.resolve(NAME), told.append).path == source.path
    assert [event.message for event in told if isinstance(event, Alert)] == [
        "The hub cannot be reached, so org/Tiny is read from its cache."
    ]


def test_the_commands_take_a_hub_model(hub: Hub, shell: Any, tmp_path: Path) -> None:
    """The whole command line against the hub: HF_ENDPOINT names it, as for all of Hugging Face's tools."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }
    done = shell("plan", "--model", NAME, "--revision", "v1", "--json", env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "tiny" and not hub.downloaded(".safetensors")
    done = shell("plan", "--model", NAME, "--revision", "v1", "--offline", env=environment)
    assert done.returncode == 2 and "model.safetensors is missing" in done.stderr
