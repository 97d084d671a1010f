"""ONNX folders: exporting, rounding and proving them."""
