"""Run every benchmark of this folder in turn: `make bench`. Each prints a Markdown table and what it ran on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HELPERS = ("common.py", "llama_tools.py", "run.py", "smol_float.py", "synthetic.py")


def main() -> int:
    """Run the scripts beside this one; the exit status is the number of those that failed."""
    scripts = sorted(path for path in Path(__file__).parent.glob("*.py") if path.name not in HELPERS)
    failed = 0
    for script in scripts:
        print(f"\n## {script.stem}\n", flush=True)
        failed += subprocess.run([sys.executable, str(script)], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
