"""What C code prints does not mix with a JSON document on stdout."""

from __future__ import annotations

import ctypes
import os

import pytest

from edgekit.base import native_output

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs the C library of the process")


def test_what_c_code_prints_goes_to_stderr_and_the_rest_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    c = ctypes.CDLL(None)
    with pytest.raises(KeyboardInterrupt), native_output.to_stderr():
        c.puts(b"a line of a solver")
        c.fflush(None)
        raise KeyboardInterrupt
    with native_output.to_stderr():
        c.puts(b"another line")
    c.puts(b"{}")
    c.fflush(None)
    assert capfd.readouterr() == ("{}\n", "a line of a solver\nanother line\n")
