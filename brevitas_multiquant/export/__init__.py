"""Verified files of every bit-width for other tools: QONNX, QCDQ for onnxruntime, FINN projects."""

from brevitas_multiquant.export.finn import Preprocessing, check_finn, export_finn, fit_table
from brevitas_multiquant.export.onnx.files import export_onnx
from brevitas_multiquant.export.qonnx.files import export_qonnx

__all__ = [
    "Preprocessing",
    "check_finn",
    "export_finn",
    "export_onnx",
    "export_qonnx",
    "fit_table",
]
