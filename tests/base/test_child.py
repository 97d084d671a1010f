"""A child process imports nothing from the current folder, which may hold the model of a stranger."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.base.child import Child


def test_modules_in_the_current_folder_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tarfile.py").write_text("print('the code of a stranger')")
    (tmp_path / "json.py").write_text("print('the code of a stranger')")
    monkeypatch.chdir(tmp_path)
    with Child("tarfile", ["--help"]) as child:
        child.wait(60)
        assert "usage" in child.output and "stranger" not in child.output
