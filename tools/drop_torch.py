"""Copy a requirements file from stdin without torch and its CUDA packages, whose builds depend on the machine."""

import re
import sys

DROPPED = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
HEADER = "# Versions that work together, with the hashes of their files. Made by `make constraints`.\n"


def main() -> None:
    """Blocks begin at the start of a line; their hashes are indented."""
    sys.stdout.write(HEADER)
    keep = True
    for line in sys.stdin:
        if not line.startswith((" ", "#")):
            keep = not DROPPED.match(line)
        if keep:
            sys.stdout.write(line)


if __name__ == "__main__":
    main()
