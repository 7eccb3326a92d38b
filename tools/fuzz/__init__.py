"""Random models through `catonnx.optimize`: sound ones keep their function, broken ones are refused cleanly."""
