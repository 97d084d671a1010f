"""Weights in, files out: merge, prune, quantize, GGUF, ONNX, adapters."""
