"""The form of a file that onnxruntime runs on integers: quantize and dequantize around all."""
