"""A command in a process of its own: bounded in time and size, whatever it starts and prints."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from edgekit.base import command
from edgekit.base.command import OUT_OF_ROOM, OUT_OF_TIME, SSH, Command


@dataclass(frozen=True)
class Shell(Command):
    """A command that runs a line of the shell instead."""

    line: str = ""

    def _argv(self, more: tuple[str, ...]) -> list[str]:
        return ["sh", "-c", self.line]


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def test_what_it_prints_is_its_document_and_what_it_says_of_a_failure_its_message() -> None:
    found = Shell((), line="""echo '{"a": 1}'; echo noise >&2""").run()
    assert (found.code, found.document, found.message) == (0, {"a": 1}, "")
    found = Shell((), line="echo noise >&2; echo 'edgekit: No such thing.' >&2; exit 3").run(10)
    assert (found.code, found.document, found.message) == (3, None, "No such thing.")
    assert Shell((), line="printf '\\377'; exit 1").run().message == "It ended with exit code 1."


@pytest.mark.parametrize("line", ["yes", "yes >&2", "yes & exit 0"])
def test_what_prints_without_end_is_stopped_in_little_memory(line: str) -> None:
    before, start = psutil.Process().memory_info().rss, time.monotonic()
    found = Shell((), line=line).run()
    assert found.code == OUT_OF_ROOM and "16 MiB" in found.message and found.hint
    assert time.monotonic() - start < 20
    assert psutil.Process().memory_info().rss - before < 100 << 20


def test_a_limit_of_time_ends_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    start = time.monotonic()
    found = Shell((), line=f"sleep 60 & echo $! > {pids}; sleep 60").run(0.5)
    assert found.code == OUT_OF_TIME and "0.5 s" in found.message
    assert time.monotonic() - start < 5
    assert gone(int(pids.read_text()))


def test_a_pipe_that_another_holds_open_keeps_nobody_waiting(tmp_path: Path) -> None:
    """As the connection that ssh leaves behind for the next."""
    pids, start = tmp_path / "pids", time.monotonic()
    found = Shell((), line=f"sleep 30 & echo $! > {pids}; echo '[1]'").run()
    assert (found.code, found.document) == (0, [1]) and time.monotonic() - start < 10
    os.kill(int(pids.read_text()), 9)


def test_one_that_closes_its_pipes_is_waited_for() -> None:
    found = Shell((), line="exec >&- 2>&-; sleep 0.3; exit 7").run()
    assert found.code == 7
    assert Shell((), line="exec >&- 2>&-; sleep 30").run(0.3).code == OUT_OF_TIME


def test_no_pipe_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for line, limit_s in (("echo 1", None), ("sleep 9", 0.1), ("yes", None)):
        Shell((), line=line).run(limit_s)
    assert (len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0) == before


def test_stop_ends_all_that_is_waited_for(tmp_path: Path) -> None:
    pids, wanted = tmp_path / "pids", Shell((), line=f"sleep 60 & echo $! > {tmp_path / 'pids'}; sleep 60")
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(wanted.run().code))
    thread.start()
    end = time.monotonic() + 10
    while not (pids.exists() and pids.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    wanted.stop()
    thread.join(10)
    assert codes and codes[0] != 0 and gone(int(pids.read_text()))


def test_another_machine_has_a_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "HOST_S", 0.3)
    assert Shell((), host="far", line="sleep 30").run().code == OUT_OF_TIME
    assert Shell((), line="sleep 0.5").run().code == 0
    assert any(option.startswith("ServerAliveInterval=") for option in SSH)


def test_a_host_is_never_an_option_of_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/argv\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    Command(("version",), "-oProxyCommand=x").run()
    assert (tmp_path / "argv").read_text().splitlines()[-3:] == [
        "--",
        "-oProxyCommand=x",
        "edgekit version --json",
    ]


def test_what_cannot_be_started_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    found = Command(("version",)).run()
    assert found.code == 127 and "could not be started: No such file" in found.message
