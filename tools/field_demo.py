"""The whole story in the field on the demo's bundle: `make field-demo`.

Two releases are brought in, the newer one answers; good traffic, then traffic full of typos; the alert, the incident that
says what and since when; then `releases rollback` under load, with no request lost. Ends with 1 where the story does not
hold.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from story import EDGEKIT, Story, next_release, wait


def main() -> int:
    """Tell the story; the exit status is 1 where a fact does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("bundles/smollm2-135m-cpu-int4"))
    parser.add_argument("--state", type=Path, default=Path(".edgekit/field-demo"))
    arguments = parser.parse_args()
    if not (arguments.bundle / "signals.json").is_file():
        sys.exit(f"{arguments.bundle} is not a bundle with signals.json: run `make demo` first.")
    shutil.rmtree(arguments.state, ignore_errors=True)
    arguments.state.mkdir(parents=True)
    story = Story(arguments.state)

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

        story.ask_well(base)
        quiet = story.run("monitor", "--once")["state"]
        story.holds(
            quiet == "OK" and not open_incidents(story), f"the monitor says {quiet}: no incident is open"
        )
        story.ask_mistyped(base)
        story.holds(wait(lambda: bool(open_incidents(story)), 30), "an incident was opened")
        seen = story.run("monitor", "--once")
        print(json.dumps(seen, indent=2, ensure_ascii=False)[:1200])
        story.holds(seen["state"] in ("WARNING", "CRITICAL"), f"the monitor says {seen['state']}")
        incident = open_incidents(story)[0]
        print(f"   {incident['what']}")
        story.run("incident", "show", incident["id"])
        story.run("incident", "ack", incident["id"], "--why", "looking into it")
        story.go_back(base, first, lambda: story.run("releases", "rollback", "--why", "it drifts"), 5)

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
