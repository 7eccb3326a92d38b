"""The only room that imports ONNX Runtime: sessions, calibration, verification, evaluation."""
