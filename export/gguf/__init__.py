"""GGUF files: writing, quantizing, streaming and proving them."""
