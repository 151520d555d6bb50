"""Plain ONNX for onnxruntime."""

from brevitas_multiquant.export.onnx.files import export_onnx
from brevitas_multiquant.export.onnx.qcdq import to_onnx, verify_onnx

__all__ = ["export_onnx", "to_onnx", "verify_onnx"]
