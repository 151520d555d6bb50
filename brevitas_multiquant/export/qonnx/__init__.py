"""QONNX for FINN and the qonnx tools."""

from brevitas_multiquant.export.qonnx.files import export_qonnx, to_qonnx, verify_qonnx

__all__ = ["export_qonnx", "to_qonnx", "verify_qonnx"]
