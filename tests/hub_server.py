"""A hub on this machine: the part of the Hugging Face hub's HTTP interface that a download uses, over folders."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE = (".safetensors",)  # kept by the hub as LFS files, named by their SHA-256


@dataclass
class Hub:
    """Repositories as `{(name, revision): folder}`; the commit of a revision is its folder's digest."""

    folders: dict[tuple[str, str], Path]
    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of each request."""
    cut_after: int = 0
    """Where not 0, a body is cut after this many bytes, and the connection closed."""

    def commit(self, name: str, revision: str) -> str:
        names = sorted(file.name for file in self.folders[name, revision].iterdir())
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
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
                self.describe(found[1], found[2] or "main")
            elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.file(found[1], found[2], found[3], body)
            else:
                self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def describe(self, name: str, revision: str) -> None:
            found = hub.folder(name, revision)
            if found is None:
                known = any(name == repository for repository, _ in hub.folders)
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
                return
            commit, folder = found
            siblings = []
            for file in sorted(folder.iterdir()):
                entry: dict[str, Any] = {
                    "rfilename": file.name,
                    "size": file.stat().st_size,
                    "blobId": "0" * 40,
                }
                if file.name.endswith(LARGE):
                    digest = hashlib.sha256(file.read_bytes()).hexdigest()
                    entry["lfs"] = {"size": file.stat().st_size, "sha256": digest, "pointerSize": 134}
                siblings.append(entry)
            document = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
            document["safetensors"] = {"parameters": {"F32": 123_000_000}, "total": 123_000_000}
            self.send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

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
                cut = hub.cut_after if "/resolve/" in self.path else 0
                self.wfile.write(data[:cut] if cut else data)
                if cut and cut < len(data):
                    self.close_connection = True

    return Handler


@contextmanager
def running(folders: dict[tuple[str, str], Path]) -> Iterator[Hub]:
    """A hub that serves `folders` until the block ends."""
    hub = Hub(folders)
    server = ThreadingHTTPServer(("127.0.0.1", 0), served(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
