"""The files of a bundle that the cache shares with it."""

from pathlib import Path

import pytest

from edgekit.base import output as outputs
from edgekit.base.cache import SMALL, Cache
from edgekit.base.output import output
from edgekit.build.bundle import put
from edgekit.report.outcome import Artifact


@pytest.mark.parametrize(
    ("runtime", "name", "names"), [("llama.cpp", "model.gguf", 2), ("onnxruntime", "onnx", 1)]
)
def test_only_a_file_whose_reader_allows_it_has_a_second_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: str, name: str, names: int
) -> None:
    monkeypatch.setattr(outputs, "GIVEN", SMALL)

    def run(out: Path, work: Path) -> None:
        file = out / name if names == 2 else out / name / "model.onnx.data"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * (SMALL + 1))

    cache = Cache(tmp_path / "cache", lambda event: None)
    stage = cache.stage("s", {}, run)
    with output(cache, tmp_path / "out") as written:
        written.folder.mkdir()
        put(written, Artifact(name, runtime, name, (stage,), (stage.path / name,)))
    (large,) = (
        file for file in (tmp_path / "out").rglob("*") if file.is_file() and file.stat().st_size > SMALL
    )
    assert large.stat().st_nlink == names
    assert (stage.path / large.relative_to(tmp_path / "out")).samefile(large)
