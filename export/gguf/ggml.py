"""The ggml library of llama.cpp, for the calls that llama-cpp-python does not declare."""

from __future__ import annotations

import ctypes
from functools import cache

from llama_cpp import llama_cpp
from llama_cpp._ctypes_extensions import load_shared_library


@cache
def library() -> ctypes.CDLL:
    """The ggml library that llama.cpp is linked with. Calls into it release the GIL."""
    found: ctypes.CDLL = llama_cpp._lib
    # On Windows, the symbols of a library's own libraries are not found through it.
    if not hasattr(found, "ggml_quantize_chunk"):
        found = load_shared_library("ggml-base", llama_cpp._base_path)
    found.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    found.ggml_validate_row_data.restype = ctypes.c_bool
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    return found
