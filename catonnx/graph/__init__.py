"""ONNX graphs by onnx-ir: load and save, find linear sites, trace what a producer can absorb, edit."""
