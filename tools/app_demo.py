"""The whole story in the terminal app, typed into a real terminal: `make app-demo`.

    build ─ promote ─ serve ─ good traffic ─ drifting traffic ─ alert ─ incident ─ rollback ─ recovery

tmux is the terminal; every step presses keys as a person does and reads what the screen shows. Traffic comes from outside,
as in `make field-demo`. The first time the build takes as long as `make demo`; finished stages are kept. Ends with 1 where
the story does not hold; the screens of each step are kept beside the state.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Self

import psutil
from story import EDGEKIT, Story, next_release, wait

BUNDLE = "smollm2-135m-cpu-int4"


class Terminal:
    """A tmux session of its own with one program in it."""

    def __init__(self, command: str, size: tuple[int, int], kept: Path) -> None:
        self._socket = f"edgekit-app-demo-{os.getpid()}"
        self._kept, self._shots = kept, 0
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(size[0]), "-y", str(size[1]), command)
        self._tmux("set-option", "-g", "status", "off")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._tmux("kill-server", check=False)

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names."""
        for key in keys:
            self._tmux("send-keys", key)
            time.sleep(0.15)

    def type(self, text: str) -> None:
        """Type a text, then enter."""
        self._tmux("send-keys", "-l", text)
        time.sleep(0.5)
        self._tmux("send-keys", "Enter")

    @property
    def text(self) -> str:
        """What is on the screen."""
        return self._tmux("capture-pane", "-p", check=False)

    @property
    def over(self) -> bool:
        """Whether the program has ended."""
        return not self._tmux("list-sessions", check=False)

    def see(self, *words: str, seconds: float = 30) -> bool:
        """Whether one of `words` comes onto the screen in time."""
        return wait(lambda: any(word in self.text for word in words), seconds)

    def keep(self, name: str) -> None:
        """Write the screen to a file."""
        self._shots += 1
        (self._kept / f"{self._shots:02}-{name}.txt").write_text(self.text, encoding="utf-8")

    def _tmux(self, *arguments: str, check: bool = True) -> str:
        command = ["tmux", "-L", self._socket, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check and done.returncode:
            sys.exit(f"{shlex.join(command)}: {done.stderr}")
        return done.stdout


class Screens(Story):
    """The story told on the screens of a terminal, which are kept."""

    def __init__(self, terminal: Terminal, state: Path) -> None:
        super().__init__(state, self._ended)
        self.terminal = terminal

    def press(self, keys: str, *words: str, seconds: float = 30, keep: str = "") -> None:
        """Press keys, by tmux's names, and go on once the screen shows one of `words`."""
        self.terminal.press(*keys.split())
        self.shows(*words, seconds=seconds, keep=keep)

    def type(self, text: str, *words: str, seconds: float = 30, keep: str = "") -> None:
        """Type a text and enter, and go on once the screen shows one of `words`."""
        self.terminal.type(text)
        self.shows(*words, seconds=seconds, keep=keep)

    def shows(self, *words: str, seconds: float = 30, keep: str = "") -> None:
        """Go on once the screen shows one of `words`; with `keep` it is kept under that name."""
        self.holds(self.terminal.see(*words, seconds=seconds), f"the screen shows {' or '.join(words)}")
        if keep:
            self.terminal.keep(keep)

    def promote(self, bundle: str, why: str) -> None:
        """Put the bundle that is shown on trial."""
        self.press("P", "Why is it promoted")
        self.type(why, "JSONL rows")
        self.type("", f"Type {bundle}")  # the same model files: its golden answers are enough
        self.type(bundle, "DONE promote", "FAILED", seconds=240, keep=f"promoted-{bundle}")
        self.holds("FAILED" not in self.terminal.text, f"{bundle} is on trial")

    def _ended(self) -> str:
        self.terminal.keep("failed")
        return f"The screen shows:\n{self.terminal.text}"


def main() -> int:
    """Tell the story."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(".edgekit/app-demo"))
    parser.add_argument("--cache-dir", type=Path, default=Path(".edgekit/cache"))
    parser.add_argument("--size", default="160x50", help="columns and rows of the terminal")
    arguments = parser.parse_args()
    if shutil.which("tmux") is None:
        sys.exit("make app-demo types into a terminal of tmux (Debian: apt-get install tmux).")
    folder: Path = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "screens").mkdir(parents=True)
    places = [
        "--cache-dir", str(arguments.cache_dir), "--bundles", str(folder / "bundles"), "--state", str(folder / "state"),
    ]  # fmt: skip
    columns, rows = map(int, arguments.size.split("x"))
    command = shlex.join([*EDGEKIT, "tui", *places])
    print(f"$ edgekit tui {shlex.join(places)}", flush=True)
    with Terminal(command, (columns, rows), folder / "screens") as terminal:
        try:
            tell(Screens(terminal, folder / "state"), terminal, folder)
        finally:
            end_server(folder / "state")
    print("\n✓ The story holds", flush=True)
    return 0


def tell(story: Screens, terminal: Terminal, folder: Path) -> None:
    """Build, serve, watch, be told, roll back, recover."""
    bundles, port = folder / "bundles", free_port()
    base = f"http://127.0.0.1:{port}/v1"

    story.say("Five questions, each answered with enter, and a build")
    story.shows("1/5")
    for step in range(2, 6):
        story.press("Enter", f"{step}/5")
    story.press("b", "Build it?", seconds=120, keep="review")
    story.press("Enter", "STARTING", "RUNNING", "KEPT", seconds=60, keep="run")
    story.shows("All gates passed", seconds=60 * 60)
    story.press("Enter", "gates passed", keep="results")

    story.say("Write mode, and the bundle is put to use")
    story.press("w", "Allow changes")
    story.press("Enter", "WRITE")
    story.promote(BUNDLE, "the first one")
    story.press("S", "Port")
    terminal.type(str(port))
    story.holds(wait(lambda: answers(port), 120), "the service answers")
    first = story.releases()["current"]

    story.say("The next release follows while the service runs")
    next_release(bundles / BUNDLE, bundles / "next")
    story.press("3 b", "next")
    terminal.press("Enter")
    story.promote("next", "an update")
    story.holds(
        wait(lambda: story.releases().get("previous") == first, 60), "it answers, and was marked good"
    )

    story.ask_well(base)
    story.press("4", "OK", keep="monitor-good")
    story.ask_mistyped(base)
    story.shows("WARNING", "CRITICAL", seconds=60, keep="monitor-alert")

    story.say("The incident")
    story.press("Enter", "INCIDENT")
    story.shows("OPEN", keep="incident")
    story.press("a", "Acknowledge incident")
    story.type("looking into it", "ACKNOWLEDGED")

    def roll_back() -> None:
        story.press("R", "Why roll back?")
        story.type("it drifts", f"Type {first}", keep="rollback")
        story.type(first, "HEALTH WATCH")

    story.go_back(base, first, roll_back, 30)
    story.shows("HEALTHY", "NOT PROVEN", "STILL BAD", seconds=90, keep="healthy")
    story.holds("HEALTHY" in terminal.text, "it is healthy")
    terminal.press("Enter", "4")
    story.holds(wait(lambda: recovered(terminal.text, first), 90), f"the monitor shows {first} as OK")
    terminal.keep("monitor-recovered")

    story.say("Leaving the app leaves the service alone")
    terminal.press("q")
    story.holds(wait(lambda: terminal.over, 20), "the app has ended")
    story.holds(answers(port), "the service still answers")


def recovered(text: str, release: str) -> bool:
    """Whether the monitor shows the release, and shows it well."""
    return any(release[:7] in line and " OK " in line for line in text.splitlines())


def answers(port: int) -> bool:
    """Whether a service is ready there."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def end_server(state: Path) -> None:
    """End the service that the app started, which outlived it."""
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "serve" in words and str(state) in words:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


if __name__ == "__main__":
    sys.exit(main())
