"""The files of a bundle that the cache shares with it, and what a bundle replaces."""

from pathlib import Path

import pytest

from edgekit.base import output as outputs
from edgekit.base.cache import SMALL, Cache
from edgekit.base.errors import ConfigError
from edgekit.base.output import output
from edgekit.build import bundle
from edgekit.build.bundle import put
from edgekit.build.request import Order
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


def test_a_bundle_never_replaces_its_own_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"question {number},answer {number % 2}" for number in range(80)]
    for name in ("data", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "data" / "rows.csv").write_text("\n".join(["prompt,completion", *lines]))
    order = Order(model="model", data="data/rows.csv", out=Path("data"), force=True)
    with pytest.raises(ConfigError, match="data holds data/rows.csv, which is in use"):
        bundle.check_free(order.request())
