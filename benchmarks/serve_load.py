"""What serving costs: decode speed and time to first token against the bare runtime, and many clients for a while.

    python benchmarks/serve_load.py [BUNDLE] [--small BUNDLE] [--clients 200] [--minutes 10] [--rounds 15] [--threads 2]

Rounds alternate between the runtime in this process and the same file behind `edgekit serve` in another, over the same
greedy answer; figures are medians over the rounds, ratios and differences are of neighbours in time. The load is on the
bundle of `--small`: each client asks again as soon as it is answered, and every answer is held against
`edgekit.load`'s own. Where `llama_cpp.server` can be imported it serves the same file for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from common import DEMO_BUNDLE, MIB

import edgekit
from edgekit.base import hardware
from edgekit.models.sampling import Sampling

PROMPT = "The history of the steam engine begins in the first century, when Hero of Alexandria described"
SERVE = [sys.executable, "-m", "edgekit.cli", "serve"]
SAMPLE_S = 2.0


@dataclass
class Speed:
    """One answer: seconds to its first token, and tokens a second after it."""

    ttft_s: float
    tokens_per_s: float


def main() -> None:
    """Print a table of speeds, then one of the load."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?", default=DEMO_BUNDLE)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{hardware.fingerprint()['cpu']}; {arguments.threads} threads; load {os.getloadavg()[0]:.1f}\n")
    speeds(arguments.bundle, arguments.rounds, arguments.tokens, arguments.threads)
    load(arguments.small or arguments.bundle, arguments.clients, arguments.minutes * 60, arguments.threads)


def speeds(bundle: Path, rounds: int, tokens: int, threads: int) -> None:
    """The runtime alone, served, and behind llama_cpp.server, in turn."""
    found: dict[str, list[Speed]] = {"the runtime alone": [], "edgekit serve": []}
    with edgekit.load(bundle, "gguf", threads=threads) as model, served(bundle, threads) as (address, _):
        peer = llama_server(bundle / "model.gguf", threads)
        for number in range(rounds + 1):  # the first warms up
            taken = {
                "the runtime alone": bare(model, tokens),
                "edgekit serve": asked(address, tokens),
                **({"llama_cpp.server": asked(peer[0], tokens)} if peer else {}),
            }
            for who, speed in taken.items():
                found.setdefault(who, []).extend([speed] if number else [])
        if peer:
            peer[1].terminate()
            peer[1].wait()
    print("| answered by | decode tokens/s | of the runtime alone | first token ms | added ms |")
    print("|---|--:|--:|--:|--:|")
    alone = found["the runtime alone"]
    for who, rows in found.items():
        share = statistics.median(
            row.tokens_per_s / base.tokens_per_s for row, base in zip(rows, alone, strict=True)
        )
        added = statistics.median(row.ttft_s - base.ttft_s for row, base in zip(rows, alone, strict=True))
        middle = statistics.median(row.tokens_per_s for row in rows)
        ttft = statistics.median(row.ttft_s for row in rows)
        print(f"| {who} | {middle:.1f} | {share:.3f} | {ttft * 1e3:.1f} | {added * 1e3:+.1f} |")
    print(f"\n{rounds} rounds of {tokens} tokens; goals: at least 0.97, at most 5 ms added.\n", flush=True)


def bare(model: edgekit.LoadedModel, tokens: int) -> Speed:
    """One answer of the runtime itself."""
    start = time.perf_counter()
    times = [
        time.perf_counter() for _ in model.runtime.generate(model.runtime.encode(PROMPT), tokens, Sampling())
    ]
    if len(times) < tokens // 2:
        sys.exit(f"This model ends its answer after {len(times)} tokens: too few to time.")
    return Speed(times[0] - start, (len(times) - 1) / (times[-1] - times[0]))


def asked(address: str, tokens: int) -> Speed:
    """The same answer over HTTP, streamed."""
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True}
    url = urlsplit(address)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=120)
    connection.connect()
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response, times = connection.getresponse(), []
    while line := response.readline():
        if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["text"]:
            times.append(time.perf_counter())
    connection.close()
    return Speed(times[0] - start, (len(times) - 1) / (times[-1] - times[0]))


@contextmanager
def served(bundle: Path, threads: int, *options: object) -> Iterator[tuple[str, psutil.Process]]:
    """`edgekit serve` on a free port: its address and its process."""
    state = tempfile.TemporaryDirectory()
    places = ["--port", 0, "--state", state.name]
    command = [*SERVE, bundle, "--format", "gguf", "--threads", threads, *places, "--json", *options]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    text = ""
    while not text.endswith("\n}\n"):
        line = process.stdout.readline()
        if not line:
            sys.exit(f"edgekit serve did not start: {text}")
        text += line
    try:
        yield json.loads(text)["address"], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()
        state.cleanup()


def llama_server(model: Path, threads: int) -> tuple[str, subprocess.Popen[bytes]] | None:
    """llama-cpp-python's own server on the same file; None where it is not installed."""
    try:
        importlib.import_module("llama_cpp.server.app")
    except ImportError as error:
        print(
            f"llama_cpp.server is left out: {error}. Install it with pip install 'llama-cpp-python[server]'.\n"
        )
        return None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--model", model, "--port", port, "--n_threads", threads, "--n_ctx", 2048]
    command = [sys.executable, "-m", "llama_cpp.server", *options]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return f"http://127.0.0.1:{port}", process
        except OSError:
            time.sleep(0.1)
    sys.exit("llama_cpp.server did not start.")


@dataclass
class Load:
    """What the clients saw and what the server held."""

    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    resident_mib: list[float] = field(default_factory=list)


def load(bundle: Path, clients: int, seconds: float, threads: int) -> None:
    """Many clients for a while; every answer is checked."""
    questions = [f"Please log {n % 9 + 1} hours on job {1000 + 37 * n}." for n in range(40)]
    with edgekit.load(bundle, "gguf", threads=threads) as model:
        expected = {
            question: model.generate(question, max_tokens=24, sampling=Sampling(1.0, 1.0, seed))
            for seed, question in enumerate(questions)
        }
    options = ("--queue", clients, "--timeout", 600)
    with served(bundle, threads, *options) as (address, process):
        found = asyncio.run(_clients(address, process, expected, clients, seconds))
    rss = found.resident_mib
    settled = rss[len(rss) // 5 :] or rss
    print("| clients | minutes | answers | wrong | lost | told to wait | p50 s | p95 s | answers/s |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    right = found.outcomes["right"]
    lost = sum(count for name, count in found.outcomes.items() if name not in ("right", "wrong", "429"))
    cuts = statistics.quantiles(found.seconds, n=20)
    print(
        f"| {clients} | {seconds / 60:g} | {right} | {found.outcomes['wrong']} | {lost} | {found.outcomes['429']} "
        f"| {statistics.median(found.seconds):.2f} | {cuts[18]:.2f} | {right / seconds:.1f} |"
    )
    print(
        f"\n{len(set(expected.values()))} different answers to {len(questions)} questions. Resident memory: "
        f"{rss[0]:.1f} MiB at first, {settled[0]:.1f} after a fifth of the time, {settled[-1]:.1f} at the end, "
        f"{max(rss):.1f} at most. Outcomes: {dict(found.outcomes)}"
    )


async def _clients(
    address: str, process: psutil.Process, expected: dict[str, str], clients: int, seconds: float
) -> Load:
    found, until = Load(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    async with httpx.AsyncClient(
        base_url=address, timeout=600, limits=limits, trust_env=False
    ) as http_client:

        async def client(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < until:
                seed, question = rng.choice(list(enumerate(expected)))
                start = time.monotonic()
                outcome = await _outcome(http_client, question, seed, expected[question], rng.random() < 0.5)
                found.outcomes[outcome] += 1
                found.seconds.append(time.monotonic() - start)
                if outcome == "429":
                    await asyncio.sleep(1)

        async def watch() -> None:
            while time.monotonic() < until:
                found.resident_mib.append(process.memory_info().rss / MIB)
                await asyncio.sleep(min(SAMPLE_S, seconds / 20))

        await asyncio.gather(watch(), *(client(number) for number in range(clients)))
    return found


async def _outcome(client: httpx.AsyncClient, question: str, seed: int, expected: str, stream: bool) -> str:
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 24,
        "temperature": 1.0,
        "seed": seed,
        "stream": stream,
    }
    try:
        response = await client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as error:
        return type(error).__name__
    if response.status_code != 200:
        return str(response.status_code)
    if not stream:
        text = response.json()["choices"][0]["message"]["content"]
    else:
        if not response.text.endswith("data: [DONE]\n\n"):
            return "a stream without its end"
        events = (json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {"))
        text = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    return "right" if text == expected else "wrong"


if __name__ == "__main__":
    main()
