"""`edgekit serve` as a process: what it prints, where it listens, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from field.serving.scripted import NO_TLS

Serve = Callable[..., "tuple[subprocess.Popen[str], dict[str, Any]]"]


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "edgekit.cli", "serve", *map(str, arguments)]


@pytest.fixture
def serve(tiny_build: Any, tmp_path: Path) -> Iterator[Serve]:
    """Start `edgekit serve` on the tiny bundle; gives the process and what it printed when it was ready."""
    started: list[subprocess.Popen[str]] = []

    def begin(*options: Any) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        state = ["--state", tmp_path / "state"]
        arguments = command(tiny_build.bundle, "--format", "gguf", "--threads", 1, "--json", *state, *options)
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            text += line
        return process, json.loads(text)

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def client(address: str, **options: Any) -> httpx.Client:
    if address.startswith("unix:"):
        options["transport"] = httpx.HTTPTransport(uds=address.removeprefix("unix:"), verify=NO_TLS)
        address = "http://localhost"
    return httpx.Client(base_url=address, timeout=30, trust_env=False, verify=NO_TLS, **options)


def question(**options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Log 3 hours."}], **options}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_answer_under_way_end(serve: Serve, number: int) -> None:
    process, facts = serve("--port", 0)
    assert facts["pid"] == process.pid and facts["format"] == "gguf" and len(facts["release"]) == 12
    with client(facts["address"]) as asked:
        body = question(stream=True, max_tokens=900, temperature=2.0, seed=5, response_format={
            "type": "json_schema", "json_schema": {"schema": {"type": "string", "minLength": 400, "maxLength": 400}},
        })  # fmt: skip
        with asked.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            assert response.status_code == 200 and first.startswith("data: ")
            process.send_signal(number)
            events = [json.loads(line[6:]) for line in [first, *lines] if line.startswith("data: {")]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert events[-1]["choices"][0]["finish_reason"] == "stop" and len(json.loads(text)) == 400
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and out == "" and "Stopping: finishing" in err
    assert "Traceback" not in err and "Log 3 hours" not in err and "plain HTTP" not in err
    with pytest.raises(httpx.ConnectError):
        client(facts["address"]).get("/healthz")


def test_a_candidate_in_the_shadow_is_compared_unseen(serve: Serve, tiny_build: Any) -> None:
    process, facts = serve("--port", 0, "--shadow", tiny_build.bundle)
    with client(facts["address"]) as asked:
        told = asked.post("/v1/chat/completions", json=question()).json()
        for _ in range(500):
            if (seen := asked.get("/shadow").json())["answered"]:
                break
            time.sleep(0.02)
        assert (seen["requests"], seen["answered"], seen["same_answer"], seen["failed"]) == (1, 1, 1, 0)
        assert told["usage"]["completion_tokens"] and "edgekit_answers_total" in asked.get("/metrics").text
        assert 'edgekit_answers_total{finish="stop"} 1.0' in asked.get("/metrics").text.replace(
            "length", "stop"
        )
    process.send_signal(signal.SIGTERM)
    assert "Shadow comparison" in process.communicate(timeout=20)[1]


def test_a_unix_socket_is_this_users_alone_and_goes_with_the_process(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "edgekit.sock"
    left = socket.socket(socket.AF_UNIX)  # of a process that died
    left.bind(str(path))
    left.close()
    process, facts = serve("--uds", path)
    assert facts["address"] == f"unix:{path}" and stat.S_IMODE(path.stat().st_mode) == 0o600
    with client(facts["address"]) as asked:
        assert asked.post("/v1/chat/completions", json=question(max_tokens=4)).status_code == 200
        assert asked.get("/v1/models", headers={"host": "anything"}).status_code == 200
    second = subprocess.run(command("absent", "--uds", path), capture_output=True, text=True, check=False)
    assert second.returncode == 2 and "in use" in second.stderr
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0 and not path.exists()


def test_what_cannot_be_served_is_said_before_anything_is_opened(tiny_build: Any, tmp_path: Path) -> None:
    def refused(*arguments: Any) -> str:
        environment = {key: value for key, value in os.environ.items() if key != "EDGEKIT_TOKEN"}
        done = subprocess.run(
            command(tiny_build.bundle, *arguments),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
        return done.stderr

    assert "EDGEKIT_TOKEN" in refused("--host", "0.0.0.0")
    assert "has no calibration" in refused(
        "--refuse-out-of-scope", "--state", tmp_path / "state", "--port", 0
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --port" in refused("--port", taken.getsockname()[1])
    (tmp_path / "file").write_text("")
    assert "in use" in refused("--uds", tmp_path / "file") and (tmp_path / "file").exists()


def test_a_public_address_is_served_with_a_token(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_TOKEN", "geheim")
    process, facts = serve("--host", "0.0.0.0", "--port", 0)
    address = facts["address"].replace("0.0.0.0", "127.0.0.1")
    with client(address) as asked:
        assert asked.get("/v1/models").status_code == 401
        bearer = {"authorization": "Bearer geheim"}
        assert asked.get("/v1/models", headers=bearer).status_code == 200
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "geheim" not in out + err
    assert "plain HTTP" in err
