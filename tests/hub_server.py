"""A hub on this machine: the part of the Hugging Face hub's HTTP interface that a download uses, over folders."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = (".safetensors", ".parquet")  # kept by the hub as LFS files, named by their SHA-256


@dataclass
class Hub:
    """Models and data sets as `{(name, revision): folder}`; the commit of a revision is the digest of its names."""

    folders: dict[tuple[str, str], Path]
    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each request."""
    cut: dict[str, int] = field(default_factory=dict)
    """The body of a file with this name is cut after so many bytes, and the connection closed."""
    stall: dict[str, int] = field(default_factory=dict)
    """The body of a file with this name stops after so many bytes, as long as its name is here."""

    def commit(self, name: str, revision: str) -> str:
        names = sorted(files_of(self.folders[name, revision]))
        return hashlib.sha1(json.dumps([name, revision, names]).encode()).hexdigest()

    def folder(self, name: str, revision: str) -> tuple[str, Path] | None:
        """The commit and the folder of a branch, a tag or a commit."""
        for (known, branch), folder in self.folders.items():
            commit = self.commit(known, branch)
            if known == name and revision in (branch, commit):
                return commit, folder
        return None

    def downloaded(self, suffix: str = "") -> list[str]:
        """The names of the files whose contents were asked for."""
        return [
            path.rpartition("/")[2]
            for method, path, _ in self.asked
            if method == "GET" and "/resolve/" in path and path.endswith(suffix)
        ]

    def ranges(self, suffix: str) -> list[str]:
        """The range of each request for the contents of a file."""
        return [span for method, path, span in self.asked if method == "GET" and path.endswith(suffix)]


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a repository by their names in it."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def entry_of(path: Path) -> dict[str, Any]:
    """What the hub lists of a file."""
    size, data = path.stat().st_size, path.read_bytes()
    entry: dict[str, Any] = {"size": size, "blobId": hashlib.sha1(data).hexdigest()}
    if path.name.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"size": size, "sha256": digest, "oid": digest, "pointerSize": 134}
    return entry


def served(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """The handler of requests to `hub`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append((self.command, path, self.headers.get("Range", "")))
            if found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self.describe(found[1], found[2] or "main")
            elif found := re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)/?", path):
                self.tree(found[1], found[2])
            elif found := re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(found[1], found[2], found[3], body)
            else:
                self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def found(self, name: str, revision: str) -> tuple[str, Path] | None:
            """The commit and the folder; answers for what is not there."""
            found = hub.folder(name, revision)
            if found is None:
                known = any(name == repository for repository, _ in hub.folders)
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
            return found

        def describe(self, name: str, revision: str) -> None:
            if (found := self.found(name, revision)) is None:
                return
            siblings = [{"rfilename": file, **entry_of(path)} for file, path in files_of(found[1]).items()]
            document = {"id": name, "modelId": name, "sha": found[0], "siblings": siblings}
            document |= {"private": False, "tags": [], "downloads": 0}
            document["safetensors"] = {"parameters": {"F32": 123_000_000}, "total": 123_000_000}
            self.json(document)

        def tree(self, name: str, revision: str) -> None:
            if (found := self.found(name, revision)) is None:
                return
            files = files_of(found[1]).items()
            self.json(
                [{"type": "file", "path": file, "oid": "0" * 40, **entry_of(path)} for file, path in files]
            )

        def json(self, value: Any) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def file(self, name: str, revision: str, file: str, body: bool) -> None:
            found = hub.folder(name, revision)
            if found is None or not (found[1] / file).is_file():
                self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data = (found[1] / file).read_bytes()
            tag = hashlib.sha256(data).hexdigest()
            headers = {"X-Repo-Commit": found[0], "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
            start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, "0"])[1])
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(206 if start else 200, data[start:], headers, body)

        def send(self, code: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if body and self.command == "GET":
                name = self.path.rpartition("/")[2]
                cut = hub.cut.get(name, hub.stall.get(name, len(data)))
                self.wfile.write(data[:cut])
                while name in hub.stall:
                    time.sleep(0.02)
                self.close_connection = cut < len(data)

    return Handler


@contextmanager
def running(folders: dict[tuple[str, str], Path]) -> Iterator[Hub]:
    """A hub that serves `folders` until the block ends."""
    hub = Hub(folders)
    server = ThreadingHTTPServer(("127.0.0.1", 0), served(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
