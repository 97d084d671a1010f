"""What the terminal app costs: time from a key press to its echo on the screen, and CPU while nobody types.

    python benchmarks/app_keys.py [--presses 200] [--devices 50] [--idle 30] [--beside-build]

`edgekit tui monitor` runs in a pseudo-terminal of 160x50 and draws as it would over SSH. A press types a letter that
stands nowhere else on the screen into the filter, and the time until that letter is drawn is taken; or it goes to the next
row, and the time until that row's address is drawn is taken. Three sittings: this device alone, with a day of history; the
same with many devices by /status at 2 Hz; and that beside a process on every core, as a build is (`--beside-build` takes a
real build of the sample model, of which the first minutes are enough).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import multiprocessing
import os
import pty
import random
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import psutil

from edgekit.app.views import demo
from edgekit.base import hardware
from edgekit.field.status import device_status
from edgekit.field.telemetry.observation import Observation
from edgekit.field.telemetry.store import FILE, Store

TUI = [sys.executable, "-m", "edgekit.cli", "tui", "monitor"]
LETTERS = [chr(code) for code in (*range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA), *range(0x430, 0x450))]
ADDRESS = re.compile(rb"/(\d+)/status")
DOWN, UP = "\x1b[B", "\x1b[A"
BURN = [sys.executable, "-c", "import numpy as np\nx = np.ones((900, 900), np.float32)\nwhile True: x @ x"]


def main() -> None:
    """Print one row for each sitting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presses", type=int, default=200)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--idle", type=float, default=30)
    parser.add_argument("--beside-build", action="store_true")
    arguments = parser.parse_args()
    print(f"{hardware.fingerprint()['cpu']}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}\n")
    print(
        "| sitting | letter: median, p99, max ms | arrow: median, p99, max ms | CPU while idle | memory MiB |"
    )
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_:
        settings = demo.unpack(Path(folder), time.time())
        local = [*TUI, "--state", str(settings.state)]
        sit("this device, a day of history", [*local, "--window", "1d"], arguments, several=False)
        fleet = open_.enter_context(devices(arguments.devices, Path(folder)))
        many = [*local, "--window", "1d", "--every", "0.5", "--fleet", str(fleet)]
        sit(f"and {arguments.devices} devices at 2 Hz", many, arguments)
        open_.enter_context(build(Path(folder)) if arguments.beside_build else burning())
        beside = "a build" if arguments.beside_build else "a process on each core"
        sit(f"the same beside {beside}", many, arguments)


def sit(name: str, command: list[str], arguments: argparse.Namespace, *, several: bool = True) -> None:
    """Run the app in a terminal of its own, press keys, wait, and print the row."""
    with Terminal(command) as terminal:
        terminal.wait_for("MONITOR", "device", seconds=60)
        terminal.drain(8)
        process = psutil.Process(terminal.pid)
        before, start = process.cpu_times(), time.monotonic()
        terminal.drain(arguments.idle)
        after = process.cpu_times()
        idle = (after.user + after.system - before.user - before.system) / (time.monotonic() - start)
        turn = max(1, min(30, arguments.devices - 2))  # the first row has no address
        ways = [UP if n and (n - 1) // turn % 2 else DOWN for n in range(arguments.presses if several else 0)]
        arrows = [terminal.go(way) for way in ways]
        terminal.write("/")
        terminal.drain(1.5)
        letters = [
            terminal.type(LETTERS[n % len(LETTERS)], 0.1 + 0.037 * (n % 7)) for n in range(arguments.presses)
        ]
        rss = process.memory_info().rss / 2**20
        print(
            f"| {name} | {_words(letters)} | {_words(arrows)} | {100 * idle:.1f} % | {rss:.0f} |", flush=True
        )


def _words(seconds: list[float]) -> str:
    took = sorted(1000 * each for each in seconds)
    if not took:
        return "one row"
    p99 = took[min(len(took) - 1, math.ceil(0.99 * len(took)) - 1)]
    return f"{statistics.median(took):.0f}, {p99:.0f}, {took[-1]:.0f}"


class Terminal:
    """A program in a pseudo-terminal of 160x50."""

    _row = b""

    def __init__(self, command: list[str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm-256color", SSH_CONNECTION="benchmark")
            os.execv(command[0], command)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._fd)

    def write(self, text: str) -> None:
        """Type `text`."""
        os.write(self._fd, text.encode())

    def read(self, seconds: float) -> bytes:
        """What is drawn next, at the latest after `seconds`."""
        if not select.select([self._fd], [], [], max(0.0, seconds))[0]:
            return b""
        return os.read(self._fd, 65536)

    def drain(self, seconds: float) -> None:
        """Let it draw for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.read(left)

    def wait_for(self, *words: str, seconds: float) -> None:
        """Wait until one of `words` was drawn."""
        seen, end = b"", time.monotonic() + seconds
        while not any(word.encode() in seen for word in words):
            if time.monotonic() > end:
                sys.exit(f"The app did not show {words}; it drew: {seen[-2000:]!r}")
            seen += self.read(1)

    def type(self, letter: str, pause: float) -> float:
        """Seconds from pressing `letter` until it is drawn; `pause` seconds later it is taken back."""
        took = self._until(letter, lambda seen: letter.encode() in seen)
        self.drain(pause)  # no step with the timers
        self.write("\x7f")
        self.drain(0.6)  # Textual may take a letter before a backspace that came just before it
        return took

    def go(self, arrow: str) -> float:
        """Seconds from pressing an arrow until the address of another row is drawn."""
        took = self._until(arrow, lambda seen: set(ADDRESS.findall(seen)) - {self._row})
        self.drain(0.3 + 0.037 * (random.randrange(7)))
        return took

    def _until(self, key: str, drawn: Callable[[bytes], Any]) -> float:
        start = time.monotonic()
        self.write(key)
        seen = b""
        while not drawn(seen):
            seen += self.read(10)
            if time.monotonic() - start > 10:
                sys.exit(f"Nothing was drawn for {key!r}: {seen[-2000:]!r}")
        self._row = (ADDRESS.findall(seen) or [self._row])[-1]
        return time.monotonic() - start


@contextmanager
def devices(count: int, folder: Path) -> Iterator[Path]:
    """`count` /status addresses whose counts grow, in a process of their own, and the file that names them."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    fleet, address = folder / "fleet.toml", f"http://127.0.0.1:{ours.recv()}"
    fleet.write_text(
        "".join(f'[[device]]\nname = "line-{n}"\nurl = "{address}/{n}/status"\n' for n in range(count))
    )
    try:
        yield fleet
    finally:
        process.kill()
        process.join()


def serve(port: Connection) -> None:
    """Serve the status of a device that answers five requests a second, and tell the port."""
    state = Path(tempfile.mkdtemp())
    store = Store(state / FILE)
    body = b""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # who asked has ended
    while True:
        now = time.time()
        store.add(Observation(now, "7f3a", "gguf", "chat", 60, 24, 0.0, 0.2, 0.5, confidence=0.98))
        store.heartbeat(now)
        store.flush()
        first, body = not body, json.dumps(device_status(state, store, now, 900.0).to_dict()).encode()
        if first:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            port.send(server.server_port)
        time.sleep(0.2)


@contextmanager
def burning() -> Iterator[None]:
    """A process on every core."""
    busy = [
        subprocess.Popen(BURN, env={**os.environ, "OMP_NUM_THREADS": "1"}) for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for process in busy:
            process.kill()


@contextmanager
def build(folder: Path) -> Iterator[None]:
    """A build of the sample model, ended when it is no longer wanted."""
    command = [
        sys.executable,
        "-m",
        "edgekit.cli",
        "build",
        "--cache-dir",
        str(folder / "cache"),
        "--out",
        str(folder / "out"),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    time.sleep(60)  # until it tunes
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


if __name__ == "__main__":
    main()
