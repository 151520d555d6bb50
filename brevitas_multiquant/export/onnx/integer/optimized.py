"""What onnxruntime makes of a file: which kernels run its layers."""

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INTEGER_LAYERS = ("QLinearConv", "ConvInteger", "QGemm", "MatMulInteger")
FLOAT_LAYERS = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")


@dataclass(frozen=True)
class Kernels:
    """How many nodes of each kind are in the graph that onnxruntime runs.

    Args:
        nodes: operator -> how many.
    """

    nodes: dict[str, int]

    @property
    def integer_layers(self) -> int:
        """Convolutions and linear layers that multiply bytes."""
        return sum(self.nodes.get(kind, 0) for kind in INTEGER_LAYERS)

    @property
    def float_layers(self) -> int:
        """Convolutions and linear layers that multiply floats."""
        return sum(self.nodes.get(kind, 0) for kind in FLOAT_LAYERS)

    @property
    def float_convolutions(self) -> int:
        """Convolutions that multiply floats."""
        return sum(self.nodes.get(kind, 0) for kind in CONVOLUTIONS)


def kernels_of(model: Any) -> Kernels:
    """The kernels that onnxruntime runs a model with, in the graph that it writes after optimizing.

    Args:
        model: ``onnx.ModelProto``.
    """
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    with tempfile.TemporaryDirectory() as folder:
        options = SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        optimized = onnx.load(options.optimized_model_filepath)
    counts = Counter(node.op_type for node in optimized.graph.node)
    return Kernels(dict(sorted(counts.items())))
