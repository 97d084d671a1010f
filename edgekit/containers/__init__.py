"""Pre-parsers for files from elsewhere: GGUF, ONNX and safetensors, checked before any other library reads them.

Each reads the header alone, holds every count, length and offset against the file's real size before it loops or
allocates, takes less than 512 MB and a few seconds whatever the file says, and raises `CorruptError` with the place
and the reason. Nothing here imports gguf, onnx, safetensors or a runtime.
"""
