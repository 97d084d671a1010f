"""The whole story in the field on the demo's bundle: `make field-demo`.

Two releases are brought in, the newer one answers; good traffic, then traffic full of typos; the alert, the incident that
says what and since when; then `releases rollback` under load, with no request lost. Ends with 1 where the story does not
hold.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from story import CLIENTS, EDGEKIT, Load, Story, next_release, questions, traffic, typos, wait


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
    asked = questions()

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
            wait(lambda: story.releases().get("current") == second), f"{second} answers, and was marked good"
        )

        story.say(f"{arguments.good} good requests from {CLIENTS} clients")
        told = traffic(base, [asked[n % len(asked)] for n in range(arguments.good)])
        story.holds(set(told) == {200}, f"answered: {dict(told)}")
        quiet = story.run("monitor", "--once")
        story.holds(not open_incidents(story), "no incident is open")

        story.say(f"{arguments.typos} requests in which every word has been mistyped")
        draw = random.Random(7)
        told = traffic(base, [typos(asked[n % len(asked)], draw) for n in range(arguments.typos)])
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
        load = Load(base, asked)
        time.sleep(3)
        typed = time.monotonic()
        story.run("releases", "rollback", "--why", "it drifts")
        wait(lambda: first in load.releases, 10, every_s=0.05)
        took = time.monotonic() - typed
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
    print("\n✓ The story holds")
    return 0


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


def open_incidents(story: Story) -> list[dict[str, Any]]:
    """Incidents under way."""
    found: list[dict[str, Any]] = story.run("incident", "list")["incidents"]
    return found


if __name__ == "__main__":
    sys.exit(main())
