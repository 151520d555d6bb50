"""Verified files of every bit-width for other tools: QONNX for FINN, QCDQ for onnxruntime."""

from brevitas_multiquant.export.onnx import export_onnx
from brevitas_multiquant.export.qonnx import export_qonnx

__all__ = ["export_onnx", "export_qonnx"]
