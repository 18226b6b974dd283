"""Graph transformations, one per file; each is an onnx_ir pass that states when it acts and what it refuses."""
