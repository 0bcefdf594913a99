"""Models for other runtimes: an ONNX file with its sampling plan, and a web page without a server."""
