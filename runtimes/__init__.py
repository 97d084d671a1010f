"""Runtimes, which open model files and answer: llama.cpp, onnxruntime-genai, and torch as the reference."""
