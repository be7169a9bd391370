"""A model as ONNX files."""
