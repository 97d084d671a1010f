"""Files in, answers out: llama.cpp, onnxruntime-genai, and torch as the reference."""
