"""A hub data set through the hub's real client and a hub on this machine: pinned, resumed, offline, never a script."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pyarrow as pa
import pytest
from hub_server import Hub
from pyarrow import parquet

FILE = "data/train-00000-of-00001.parquet"
ROWS = 400


def rows(word: str, more: str = "") -> bytes:
    features = {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    table = pa.table(
        {"text": [f"{word} {n} {more}" for n in range(ROWS)], "label": [n % 2 for n in range(ROWS)]}
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folders = {("org/rows", revision): tmp_path / "hub" / revision for revision in ("main", "v1")}
    for (_, revision), folder in folders.items():
        (folder / "data").mkdir(parents=True)
        (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\nRows.")
        (folder / "rows.py").write_text("raise SystemExit('a script was run')")
        (folder / "extra.pkl").write_bytes(b"\x80\x04.")
        (folder / FILE).write_bytes(rows(revision))
    with hub_server.running(folders) as found:
        yield found


def command(hub: Hub | None, home: Path, *typed: str) -> tuple[list[str], dict[str, str]]:
    """`edgekit data audit` and its environment, with the hub's cache in `home`; without a hub the network is down."""
    env = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
    }
    env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    return [sys.executable, "-m", "edgekit.cli", "data", "audit", *typed, "--json"], env


def audit(hub: Hub | None, home: Path, *typed: str) -> tuple[int, Any, str]:
    """What the command says in a process of its own."""
    typed_out, env = command(hub, home, *typed)
    done = subprocess.run(typed_out, env=env, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_hub_data_set_is_pinned_and_read_again_without_the_network(hub: Hub, tmp_path: Path) -> None:
    code, found, said = audit(hub, tmp_path, "org/rows")
    assert (
        code == 0
        and sum(found["rows"].values()) == ROWS
        and found["commit"] == hub.commit("org/rows", "main")
    ), (
        found,
        said,
    )
    assert found["card"] == {"source": "hub: org/rows", "licence": "cc0-1.0"}
    assert set(found["labels"]["train"]) == {"no", "yes"} and "Downloading 2 files of org/rows" in said
    assert set(hub.downloaded()) == {"README.md", Path(FILE).name}
    code, pinned, _ = audit(hub, tmp_path, "org/rows", "--data-revision", "v1")
    assert (
        code == 0 and pinned["commit"] == hub.commit("org/rows", "v1") and pinned["sha256"] != found["sha256"]
    )
    code, again, said = audit(None, tmp_path, "org/rows")
    assert code == 0 and again["sha256"] == found["sha256"] and "read from its cache" in said
    for typed in (("org/rows@v9",), ("org/other",)):
        code, error, _ = audit(hub, tmp_path, *typed)
        assert code == 2 and typed[0] in error["message"] and "\n" not in error["message"]


def test_a_broken_connection_continues_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    name = Path(FILE).name
    source = hub.folders["org/rows", "main"] / FILE
    source.write_bytes(rows("new", "long " * 12_000))
    hub.cut[name] = 11 * 2**20  # the client writes blocks of 10 MiB
    assert source.stat().st_size > 2 * hub.cut[name]
    code, found, _ = audit(hub, tmp_path, "org/rows")
    assert code == 0 and sum(found["rows"].values()) == ROWS
    assert hub.ranges(name)[1:] == [f"bytes={10 * block * 2**20}-" for block in (1, 2)]


def test_a_killed_download_continues_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    name = Path(FILE).name
    (hub.folders["org/rows", "main"] / FILE).write_bytes(rows("new", "long " * 12_000))
    hub.stall[name] = 12 * 2**20
    typed, env = command(hub, tmp_path, "org/rows")
    process = subprocess.Popen(typed, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (parts := [p for p in tmp_path.rglob("*.edgekit-part") if p.stat().st_size]):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.stall.clear()
    hub.asked.clear()
    kept = parts[0].stat().st_size
    code, error, _ = audit(None, tmp_path, "org/rows", "--offline")
    assert code == 2 and name in error["message"]
    code, found, _ = audit(hub, tmp_path, "org/rows")
    assert code == 0 and sum(found["rows"].values()) == ROWS
    assert hub.ranges(name) == [f"bytes={kept}-"] and not parts[0].exists()


def test_an_interrupted_download_keeps_its_finished_files(hub: Hub, tmp_path: Path) -> None:
    first, second = FILE.replace("train", "test"), Path(FILE).name
    shutil.copyfile(hub.folders["org/rows", "v1"] / FILE, hub.folders["org/rows", "main"] / first)
    hub.cut[second] = 0
    code, error, _ = audit(hub, tmp_path, "org/rows")
    assert code == 2 and "the download continues where it stopped" in error["hint"]
    code, error, _ = audit(None, tmp_path, "org/rows", "--offline")
    assert code == 2 and f"It lacks data/{second}. Nothing was downloaded." in error["message"]
    hub.cut.clear()
    hub.asked.clear()
    code, found, said = audit(hub, tmp_path, "org/rows")
    assert code == 0 and found["rows"]["test"] == ROWS and "Downloading 1 file of" in said
    assert hub.downloaded(".parquet") == [second]
