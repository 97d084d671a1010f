"""A process bounds its own memory, within the limit that it has already, and gives back what it does not use."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from edgekit.base.memory import RESERVED_MIB, page_out

CODE = """
import json, resource, sys
from edgekit.base.memory import limit_own_memory
has, wanted, for_good = json.loads(sys.argv[1])
if has:
    resource.setrlimit(resource.RLIMIT_DATA, (has << 20, has << 20))
told = limit_own_memory(wanted, for_good=for_good)
soft, hard = (limit >> 20 if limit > 0 else limit for limit in resource.getrlimit(resource.RLIMIT_DATA))
try:
    bytearray((told + 100) << 20)
    taken = True
except MemoryError:
    taken = False
print(json.dumps([told, soft, hard, taken]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
@pytest.mark.parametrize(
    ("has", "for_good", "expected"),
    [
        (0, False, [500 + RESERVED_MIB, 500 + RESERVED_MIB, -1, False]),
        (0, True, [500 + RESERVED_MIB, 500 + RESERVED_MIB, 500 + RESERVED_MIB, False]),
        (700, False, [700, 700, 700, False]),  # a limit that it cannot raise
        (700, True, [700, 700, 700, False]),
    ],
)
def test_a_process_takes_no_more_than_its_limit(has: int, for_good: bool, expected: list[Any]) -> None:
    command = [sys.executable, "-c", CODE, json.dumps([has, 500, for_good])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected


FREED = """
import psutil
from edgekit.base.memory import give_back

class Block(list): pass

blocks = [Block([bytearray(100_000)]) for _ in range(3000)]
for block in blocks:
    block.append(block)  # a circle, which only a collection frees
pin = bytearray(100_000)  # behind all of them, so that the heap cannot shrink by itself
del blocks, block
give_back()
print(psutil.Process().memory_info().rss >> 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the allocator is not glibc's")
def test_freed_memory_goes_back_to_the_system() -> None:
    found = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 150, "of the blocks' 286 MiB nothing may be left"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can be told so")
def test_pages_of_a_mapped_file_leave_memory_and_lose_nothing(tmp_path: Path) -> None:
    size = 64 << 20
    with (tmp_path / "file").open("wb") as file:
        file.write(np.random.default_rng(0).bytes(size))
        os.fsync(file.fileno())  # a page that is still to be written stays
    values = np.memmap(tmp_path / "file", np.uint8, "r")
    total = int(values.sum(dtype=np.int64))
    before = psutil.Process().memory_info().shared
    page_out(values.ctypes.data + 10, size - 20)
    assert before - psutil.Process().memory_info().shared > size * 3 // 4
    assert int(values.sum(dtype=np.int64)) == total
    owned = np.ones(1 << 20)
    page_out(owned.ctypes.data, owned.nbytes)
    assert owned.sum() == owned.size
