"""What the demos of the field and of the app share: a story that is told and checked, traffic, and a next release."""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgekit.data.dataset import load_dataset

EDGEKIT = [sys.executable, "-m", "edgekit.cli"]
CLIENTS = 4
GOOD, MISTYPED = 120, 240  # requests
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Story:
    """Says what happens, runs commands as a person would, and ends at the first thing that does not hold."""

    def __init__(self, state: Path, failed: Callable[[], str] = lambda: "") -> None:
        self.state, self._failed = state, failed

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

    def releases(self) -> dict[str, str]:
        """The release in each place: `current`, `previous` and others."""
        return {one["place"]: one["name"] for one in reversed(self.run("releases", "list"))}

    def ask_well(self, base: str) -> None:
        """Good traffic, all of it answered."""
        self.say(f"{GOOD} good requests from {CLIENTS} clients")
        asked = questions()
        self._answered(traffic(base, [asked[n % len(asked)] for n in range(GOOD)]))

    def ask_mistyped(self, base: str) -> None:
        """Traffic that drifts, all of it answered."""
        self.say(f"{MISTYPED} requests in which every word has been mistyped")
        asked, draw = questions(), random.Random(7)
        self._answered(traffic(base, [typos(asked[n % len(asked)], draw) for n in range(MISTYPED)]))

    def go_back(self, base: str, first: str, roll_back: Callable[[], None], most_s: float) -> None:
        """Back to the release `first` under load: it answers again within `most_s`, and no request is lost."""
        self.say("Back to the release before, under load")
        load = Load(base, questions())
        time.sleep(3)
        typed = time.monotonic()
        roll_back()
        wait(lambda: first in load.releases, most_s + 5, every_s=0.05)
        took = time.monotonic() - typed
        self.holds(took <= most_s, f"{first} answers again {took:.1f} s after the first key")
        time.sleep(5)
        self._answered(load.stop())
        self.holds(load.releases[-1] == first, "and the last ones were answered by it")

    def _answered(self, told: Counter[int]) -> None:
        self.holds(set(told) == {200}, f"answered: {dict(told)}")

    def holds(self, fact: bool, text: str) -> None:
        """Go on where `fact` holds."""
        print(f"   {'✓' if fact else '✗'} {text}", flush=True)
        if not fact:
            sys.exit(f"The story does not hold. {self._failed()}".strip())


def questions() -> list[str]:
    """What the demo's test rows ask."""
    return [str(row.messages[-2]["content"]) for row in load_dataset("demo").test]


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


def wait(condition: Callable[[], object], seconds: float = 20, every_s: float = 1.0) -> bool:
    """Whether `condition()` comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(every_s)
    return bool(condition())
