"""Show pip's verbose output as a few lines: each package, and the compiler's progress in percent."""

import re
import sys

STEP = re.compile(r"\[(\d+)/(\d+)\]")
NAME = re.compile(r"^\s*(?:Collecting|Building wheels? for collected packages:) (\S+)")


def main() -> int:
    """Read pip's lines until it ends; exit 1 and show the last lines when it did not succeed."""
    lines: list[str] = []
    shown = -1
    for line in sys.stdin:
        lines = [*lines[-39:], line]
        if step := STEP.search(line):
            percent = 100 * int(step[1]) // int(step[2])
            if percent // 10 != shown // 10 or percent < shown:
                shown = percent
                print(f"  compiling {percent:>3} %", flush=True)
        elif name := NAME.match(line):
            print(f"  {name[1]}", flush=True)
    if any("Successfully installed" in line or "already satisfied" in line for line in lines):
        return 0
    print("".join(lines))
    return 1


if __name__ == "__main__":
    sys.exit(main())
