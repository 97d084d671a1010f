"""A hub data set through the hub's real client and a hub on this machine: pinned, resumed, offline, never a script."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

MAIN, V1 = "a" * 40, "b" * 40
REVISIONS = {"main": MAIN, "v1": V1}
FILE = "data/train-00000-of-00001.parquet"
ROWS = 400


class Hub(ThreadingHTTPServer):
    """A hub of one data set; the connection of a file in `cut` ends after so many bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, dict[str, bytes]] = {MAIN: {}, V1: {}}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.cut: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if found := re.fullmatch(r"/api/datasets/org/rows(?:/revision/(.+))?", path):
            commit = REVISIONS.get(found[1] or "main", found[1] or MAIN)
            if commit not in self.server.files:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [
                {"rfilename": name, "size": len(text)} for name, text in self.server.files[commit].items()
            ]
            self._json(
                {
                    "id": "org/rows",
                    "sha": commit,
                    "siblings": siblings,
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                }
            )
        elif found := re.fullmatch(r"/api/datasets/org/rows/tree/([^/]+)/?", path):
            commit = REVISIONS.get(found[1], found[1])
            self._json([
                {"type": "file", "path": name, "size": len(text), "oid": hashlib.sha1(text).hexdigest()}
                for name, text in self.server.files[commit].items()
            ])  # fmt: skip
        elif found := re.fullmatch(r"/datasets/org/rows/resolve/([^/]+)/(.+)", path):
            self._file(REVISIONS.get(found[1], found[1]), found[2])
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _file(self, commit: str, name: str) -> None:
        text = self.server.files[commit][name]
        first = 0
        if wanted := self.headers.get("Range"):
            self.server.ranges.append(f"{name} {wanted}")
            first = int(wanted.removeprefix("bytes=").split("-")[0])
        about = {
            "ETag": f'"{hashlib.sha1(text).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        if first:
            about["Content-Range"] = f"bytes {first}-{len(text) - 1}/{len(text)}"
        self._send(206 if first else 200, text[first:], about)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            cut = next(
                (bytes for name, bytes in self.server.cut.items() if self.path.endswith(name)), len(body)
            )
            self.wfile.write(body[:cut])
            self.close_connection = cut < len(body)


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
def hub() -> Iterator[Hub]:
    found = Hub()
    for commit, word in ((MAIN, "new"), (V1, "old")):
        found.files[commit] = {
            "README.md": b"---\nlicense: cc0-1.0\n---\nRows.",
            "rows.py": b"raise SystemExit('a script was run')",
            "extra.pkl": b"\x80\x04.",
            FILE: rows(word),
        }
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def audit(hub: Hub | None, home: Path, *typed: str) -> tuple[int, Any, str]:
    """`edgekit data audit` in a process of its own, with the hub's cache in `home`; without a hub the network is down."""
    env = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9",
    }
    env |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "data", "audit", *typed, "--json"],
        env=env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_hub_data_set_is_pinned_and_read_again_without_the_network(hub: Hub, tmp_path: Path) -> None:
    code, found, said = audit(hub, tmp_path, "org/rows")
    assert code == 0 and sum(found["rows"].values()) == ROWS and found["commit"] == MAIN, (found, said)
    assert found["card"] == {"source": "hub: org/rows", "licence": "cc0-1.0"}
    assert set(found["labels"]["train"]) == {"no", "yes"} and "Downloading 1 files of org/rows" in said
    assert not any("rows.py" in path or ".pkl" in path for path in hub.asked if "/resolve/" in path)
    code, pinned, _ = audit(hub, tmp_path, "org/rows", "--data-revision", "v1")
    assert code == 0 and pinned["commit"] == V1 and pinned["sha256"] != found["sha256"]
    code, again, said = audit(None, tmp_path, "org/rows")
    assert code == 0 and again["sha256"] == found["sha256"] and "read from its cache" in said
    for typed in (("org/rows@v9",), ("org/other",)):
        code, error, _ = audit(hub, tmp_path, *typed)
        assert code == 2 and typed[0] in error["message"] and "\n" not in error["message"]


def test_a_broken_connection_continues_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    hub.files[MAIN][FILE] = rows("new", "long " * 12_000)
    hub.cut[FILE] = 11 * 2**20  # the client writes blocks of 10 MiB
    assert len(hub.files[MAIN][FILE]) > 2 * hub.cut[FILE]
    code, found, _ = audit(hub, tmp_path, "org/rows")
    assert code == 0 and sum(found["rows"].values()) == ROWS
    assert hub.ranges == [f"{FILE} bytes={10 * block * 2**20}-" for block in (1, 2)]


def test_an_interrupted_download_keeps_its_finished_files(hub: Hub, tmp_path: Path) -> None:
    second = FILE.replace("train", "test")
    hub.files[MAIN][second] = rows("test")
    hub.cut[second] = 0
    code, error, _ = audit(hub, tmp_path, "org/rows")
    assert code == 2 and "Run the same command again to continue" in error["hint"]
    code, error, _ = audit(None, tmp_path, "org/rows", "--offline")
    assert code == 2 and "not whole in the hub's cache" in error["message"]
    hub.cut.clear()
    hub.asked.clear()
    code, found, said = audit(hub, tmp_path, "org/rows")
    assert code == 0 and found["rows"]["test"] == ROWS and "Downloading 1 files" in said
    assert any(path.endswith(second) for path in hub.asked) and not any(
        path.endswith(FILE) for path in hub.asked
    )
