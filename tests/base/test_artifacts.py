"""What is written never takes the place of what is read, and what cannot be written is told before the work begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.base.artifacts import check_output, written_whole
from edgekit.base.errors import ConfigError


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "rows.csv").write_text("rows")
    (tmp_path / "link.csv").symlink_to(folder / "rows.csv")
    return Path("data/rows.csv")


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("data/rows.csv", "data/rows.csv is in use"),
        ("link.csv", "link.csv is in use"),
        ("data", "data holds data/rows.csv, which is in use"),
        ("..", "which is in use"),
        ("data/rows.csv/x", "data/rows.csv is no folder"),
        ("x" * 250, "File name too long"),
    ],
)
def test_an_output_that_would_lose_something_is_refused_even_with_force(
    rows: Path, out: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said), written_whole(Path(out), inputs=[rows], force=True):
        pytest.fail("the work began")
    assert rows.read_text() == "rows" and {path.name for path in Path().iterdir()} == {"data", "link.csv"}


def test_a_folder_is_replaced_by_a_folder_only(rows: Path) -> None:
    Path("old").mkdir()
    with pytest.raises(ConfigError, match="old is a folder"):
        check_output(Path("old"), force=True, file=True)
    with pytest.raises(ConfigError, match="old already exists"):
        check_output(Path("old"))
    with written_whole(Path("old"), inputs=[rows], force=True) as staging:
        staging.mkdir()
        (staging / "new").touch()
    assert [path.name for path in Path("old").iterdir()] == ["new"]
