"""The whole story in the field on the demo's bundle: `make field-demo`.

Two releases are brought in, the newer one answers; good traffic, then traffic full of typos; the alert, the incident that
says what and since when; then `releases rollback` under load, with no request lost. Ends with 1 where the story does not
hold.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgekit.data.dataset import load_dataset

EDGEKIT = [sys.executable, "-m", "edgekit.cli"]
CLIENTS = 4
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Story:
    """Says what happens, runs commands as a person would, and counts what does not hold."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.faults: list[str] = []

    def say(self, text: str) -> None:
        """Say what comes next."""
        print(f"\n── {text}", flush=True)

    def run(self, *arguments: object) -> Any:
        """Run an edgekit command with --json and return what it prints."""
        words = [*map(str, arguments), "--state", str(self.state), "--json"]
        print(f"$ edgekit {' '.join(words[:-1])}", flush=True)
        done = subprocess.run([*EDGEKIT, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def holds(self, fact: bool, text: str) -> None:
        """Say `text` with a mark, and remember when it does not hold."""
        print(f"   {'✓' if fact else '✗'} {text}", flush=True)
        if not fact:
            self.faults.append(text)


def main() -> int:
    """Tell the story; the exit status is 1 where a fact does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("bundles/smollm2-135m-cpu-int4"))
    parser.add_argument("--state", type=Path, default=Path(".edgekit/field-demo"))
    parser.add_argument("--good", type=int, default=120, help="requests of good traffic")
    parser.add_argument("--typos", type=int, default=240, help="requests full of typos")
    arguments = parser.parse_args()
    if not (arguments.bundle / "signals.json").is_file():
        sys.exit(f"{arguments.bundle} is not a bundle with signals.json: run `make demo` first.")
    shutil.rmtree(arguments.state, ignore_errors=True)
    arguments.state.mkdir(parents=True)
    story = Story(arguments.state)
    questions = [row.messages[-2]["content"] for row in load_dataset("demo").test]

    story.say("A bundle is brought onto the device and put to use")
    first = story.run("releases", "import", arguments.bundle)["name"]
    story.run("releases", "promote", first, "--why", "the first one")
    server, base = serve(arguments.state)
    try:
        story.say("The next release follows while the server runs")
        second = story.run("releases", "import", next_release(arguments.bundle, arguments.state / "next"))[
            "name"
        ]
        story.run("releases", "promote", second, "--why", "an update")
        story.holds(
            wait(lambda: places(story).get(second) == "current"), f"{second} answers, and was marked good"
        )

        story.say(f"{arguments.good} good requests from {CLIENTS} clients")
        told = traffic(base, [questions[n % len(questions)] for n in range(arguments.good)])
        story.holds(set(told) == {200}, f"answered: {dict(told)}")
        quiet = story.run("monitor", "--once")
        story.holds(not open_incidents(story), "no incident is open")

        story.say(f"{arguments.typos} requests in which every word has been mistyped")
        draw = random.Random(7)
        told = traffic(base, [typos(questions[n % len(questions)], draw) for n in range(arguments.typos)])
        story.holds(set(told) == {200}, f"answered: {dict(told)}")
        story.holds(wait(lambda: bool(open_incidents(story)), 30), "an incident was opened")
        seen = story.run("monitor", "--once")
        print(json.dumps(seen, indent=2, ensure_ascii=False)[:1200])
        shown = (quiet["state"], seen["state"])
        story.holds(
            shown[0] == "OK" and shown[1] in ("WARNING", "CRITICAL"),
            f"the monitor said {shown[0]}, now {shown[1]}",
        )
        for incident in open_incidents(story):
            print(f"   {incident['what']}")
        if not (under_way := open_incidents(story)):
            sys.exit("There is no incident to show.")
        incident = under_way[0]
        story.run("incident", "show", incident["id"])
        story.run("incident", "ack", incident["id"], "--why", "looking into it")

        story.say("Back to the release before, under load")
        load = Load(base, questions)
        time.sleep(3)
        asked = time.monotonic()
        story.run("releases", "rollback", "--why", "it drifts")
        wait(lambda: first in load.releases, 10, every_s=0.05)
        took = time.monotonic() - asked
        story.holds(took <= 5, f"{first} answers again {took:.1f} s after the command was typed")
        time.sleep(5)
        told = load.stop()
        story.holds(set(told) == {200}, f"no request was lost: {dict(told)}")
        story.holds(load.releases[-1] == first, "and the last ones were answered by it")

        story.say("SIGTERM: what was accepted is answered, then the server ends")
        server.send_signal(signal.SIGTERM)
        story.holds(server.wait(60) == 0, "exit 0")
    finally:
        server.kill()
    print(f"\n{'✗ ' + '; '.join(story.faults) if story.faults else '✓ The story holds'}")
    return int(bool(story.faults))


def serve(state: Path) -> tuple[subprocess.Popen[str], str]:
    """Start `edgekit serve` on the release in use; returns the process and its address."""
    words = ["serve", "--port", "0", "--state", str(state), "--json"]
    print(f"$ edgekit {' '.join(words[:-1])}", flush=True)
    server = subprocess.Popen([*EDGEKIT, *words], stdout=subprocess.PIPE, text=True)
    document = ""
    assert server.stdout is not None
    for line in server.stdout:
        document += line
        if line.startswith("}"):
            return server, str(json.loads(document)["base_url"])
    sys.exit("The server did not start.")


def next_release(bundle: Path, out: Path) -> Path:
    """The next version: the same model with another word in its README, and a manifest that says so."""
    shutil.copytree(bundle, out)
    with (out / "README.md").open("a", encoding="utf-8") as readme:
        readme.write("\nThe next release.\n")
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    content = (out / "README.md").read_bytes()
    for entry in manifest["files"]:
        if entry["path"] == "README.md":
            entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")
    return out


def ask(base: str, question: str) -> tuple[int, str]:
    """One request: its status, and the release that answered."""
    body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
    request = urllib.request.Request(f"{base}/chat/completions", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, str(json.load(answer)["system_fingerprint"]).removeprefix("fp_")
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (OSError, http.client.HTTPException):  # refused, reset, cut short: a lost request
        return 0, ""


def traffic(base: str, questions: Sequence[str]) -> Counter[int]:
    """Ask all questions from some clients side by side; counts of statuses."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        return Counter(status for status, _ in clients.map(lambda question: ask(base, question), questions))


class Load:
    """Clients that ask until `stop`."""

    def __init__(self, base: str, questions: Sequence[str]) -> None:
        self.releases: list[str] = []
        self._told: Counter[int] = Counter()
        self._over = threading.Event()
        self._clients = [
            # each question once in a round: four clients that ask the same would be a drift themselves
            threading.Thread(target=self._ask, args=(base, itertools.cycle(questions[n::CLIENTS])))
            for n in range(CLIENTS)
        ]
        for client in self._clients:
            client.start()

    def _ask(self, base: str, questions: Iterable[str]) -> None:
        for question in questions:
            if self._over.is_set():
                return
            status, release = ask(base, question)
            self._told[status] += 1
            self.releases.append(release)

    def stop(self) -> Counter[int]:
        """Stop, and count what was answered."""
        self._over.set()
        for client in self._clients:
            client.join()
        return self._told


def typos(text: str, draw: random.Random) -> str:
    """One letter of every word replaced, dropped or doubled; numbers stay as they are."""
    words = []
    for word in text.split():
        at = draw.randrange(len(word))
        if word[at].isalpha():
            word = word[:at] + draw.choice([draw.choice(LETTERS), "", word[at] * 2]) + word[at + 1 :]
        words.append(word)
    return " ".join(words)


def places(story: Story) -> dict[str, str]:
    """Where each release stands."""
    return {release["name"]: release["place"] for release in story.run("releases", "list")}


def open_incidents(story: Story) -> list[dict[str, Any]]:
    """Incidents under way."""
    found: list[dict[str, Any]] = story.run("incident", "list")["incidents"]
    return found


def wait(condition: Any, seconds: float = 20, every_s: float = 1.0) -> bool:
    """Whether `condition()` comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(every_s)
    return bool(condition())


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
