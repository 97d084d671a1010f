"""The manifest covers every file that a bundle uses: nothing is opened whose digest was not held."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.base.artifacts import sha256_file
from edgekit.base.errors import CorruptError
from edgekit.device.manifest import check_files, read_manifest


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A file, and two folders of files, with their manifest."""
    folder = tmp_path / "bundle"
    names = ["model.gguf", "onnx/model.onnx", "onnx/model.onnx.data", "tokenizer/tokenizer.json"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    files = [
        {"path": n, "bytes": (folder / n).stat().st_size, "sha256": sha256_file(folder / n)} for n in names
    ]
    formats = {"gguf": {"path": "model.gguf"}, "onnx": {"path": "onnx"}}
    manifest = {"schema": "edgekit.bundle/1", "files": files, "formats": formats}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_whole_bundle_passes(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("beside the listed folders a person may keep notes")
    for below in ("", "model.gguf", "onnx"):
        check_files(bundle, read_manifest(bundle), below)


def edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def hurt(bundle: Path) -> None:
        manifest = read_manifest(bundle)
        edit(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))

    return hurt


def linked(name: str) -> Callable[[Path], None]:
    """The file's own content, reached by a link out of the bundle."""

    def hurt(bundle: Path) -> None:
        (bundle / name).rename(bundle.parent / "elsewhere")
        (bundle / name).symlink_to(bundle.parent / "elsewhere")

    return hurt


def folder_linked(bundle: Path) -> None:
    (bundle / "onnx").rename(bundle.parent / "elsewhere")
    (bundle / "onnx").symlink_to(bundle.parent / "elsewhere")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a format outside": (edited(lambda m: m["formats"]["gguf"].update(path="/etc/hostname")), "lists no file"),
    "a format above": (edited(lambda m: m["formats"]["gguf"].update(path="../model.gguf")), "lists no file"),
    "a format by a detour": (edited(lambda m: m["formats"]["gguf"].update(path="onnx/../model.gguf")), "lists no"),
    "a format that is not listed": (edited(lambda m: m["formats"]["gguf"].update(path="other.gguf")), "lists no file"),
    "a format without a path": (edited(lambda m: m["formats"]["gguf"].pop("path")), "lists no file"),
    "a format that is the bundle": (edited(lambda m: m["formats"]["gguf"].update(path=".")), "lists no file"),
    "a manifest that is nested without end": (
        lambda b: (b / "manifest.json").write_text("[" * 100_000), "manifest.json cannot be read",
    ),
    "formats as a list": (edited(lambda m: m.update(formats=[])), "does not name its formats"),
    "no files": (edited(lambda m: m.update(files=[])), "lists no files"),
    "a file outside": (edited(lambda m: m["files"][0].update(path="/etc/hostname")), "not a file of the bundle"),
    "a file twice": (edited(lambda m: m["files"].append(m["files"][0])), "twice"),
    "no digest": (edited(lambda m: m["files"][0].pop("sha256")), "without a sha256"),
    "an entry that is a text": (edited(lambda m: m["files"].append("model.gguf")), "not a file of the bundle"),
    "a file more": (lambda b: (b / "onnx" / "custom_ops.so").write_text("x"), "custom_ops.so is not in the manifest"),
    "a file more, deeper": (
        lambda b: [(b / "onnx/sub").mkdir(), (b / "onnx/sub/x").write_text("x")], "x is not in the manifest",
    ),
    "a link more": (lambda b: (b / "tokenizer" / "more").symlink_to("/etc"), "not in the manifest"),
    "a file by a link": (linked("model.gguf"), "leads out of the bundle"),
    "a folder by a link": (folder_linked, "leads out of the bundle"),
    "another size": (lambda b: (b / "model.gguf").write_text("longer than before"), "digest differs"),
    "another byte": (lambda b: (b / "model.gguf").write_text("model.ggug"), "digest differs"),
    "a missing file": (lambda b: (b / "onnx/model.onnx.data").unlink(), "missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_the_manifest_does_not_cover_is_refused(case: str, bundle: Path) -> None:
    hurt, reason = HOSTILE[case]
    hurt(bundle)
    with pytest.raises(CorruptError, match=reason):
        check_files(bundle, read_manifest(bundle))


def test_one_format_is_held_alone(bundle: Path) -> None:
    (bundle / "model.gguf").write_text("other")
    check_files(bundle, read_manifest(bundle), "onnx")
    (bundle / "onnx" / "custom_ops.so").write_text("x")
    with pytest.raises(CorruptError, match="not in the manifest"):
        check_files(bundle, read_manifest(bundle), "onnx")
    with pytest.raises(CorruptError, match="lists no file"):
        check_files(bundle, read_manifest(bundle), "onnx/other")
