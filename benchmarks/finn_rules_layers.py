"""Single layers with drawn options, estimated by FINN's own classes, for `finn_rules.py`."""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from finn_rules_nodes import changed_fields

from brevitas_multiquant.cost import luts
from brevitas_multiquant.cost.luts.folding import divisors
from brevitas_multiquant.cost.luts.nodes import MEM_MODES, RAM_STYLES

BOARDS = ("ZCU104", "Pynq-Z1", "VCK190")
OF_A_KIND = 60
DOMAIN = "finn.custom_op.fpgadataflow"
CHANNELS = (1, 3, 6, 12, 16, 30, 64)
Attributes = dict[str, Any]


class _Weights:
    """Stands for a model where FINN asks for the weights of a layer."""

    def __init__(self, smallest: int) -> None:
        self.smallest = smallest

    def get_initializer(self, name: str) -> np.ndarray:
        """Any weights with that smallest one."""
        return np.array([self.smallest, 0])


def drawn_layers(seed: int) -> list[dict[str, Any]]:
    """Entries of `OF_A_KIND` layers of each kind."""
    with tempfile.TemporaryDirectory() as folder:  # FINN looks for both before it is imported
        os.environ.setdefault("FINN_BUILD_DIR", folder)
        os.environ.setdefault("FINN_SETTINGS", str(Path(folder) / "settings.yaml"))
        return list(_entries(random.Random(seed)))


def _entries(draw: random.Random) -> Iterator[dict[str, Any]]:
    for kind in (_matrix_product, _depthwise_product, _thresholds, _window, _converter):
        for index in range(OF_A_KIND):
            board = BOARDS[index % len(BOARDS)]
            node, operator, attributes = kind(draw)
            layer, found = _estimate(node, operator, attributes, board)
            entry = {"kind": type(node).__name__, "fields": changed_fields(node), "board": board}
            if not isinstance(node, luts.WidthConverter):
                entry["cycles"] = int(layer.get_exp_cycles())
            yield {**entry, "finn": [int(found[n]) for n in ("LUT", "BRAM_18K", "DSP", "URAM")]}


def _estimate(node: Any, operator: str, attributes: Attributes, board: str) -> tuple[Any, Any]:
    from finn.transformation.fpgadataflow.specialize_layers import _determine_impl_style
    from finn.util.basic import part_map
    from onnx import helper
    from qonnx.core.datatype import DataType
    from qonnx.custom_op.registry import getCustomOp

    generic = helper.make_node(operator, ["in", "in1"], ["out"], domain=DOMAIN, **attributes)
    smallest = 0
    if "weightDataType" in attributes:
        smallest = int(DataType[attributes["weightDataType"]].min()) + getattr(node, "narrow", True)
    style = _determine_impl_style(generic, part_map[board], _Weights(smallest))
    generic.op_type, generic.domain = f"{operator}_{style}", f"{DOMAIN}.{style}"
    layer = getCustomOp(generic)
    return layer, layer.node_res_estimation(part_map[board])


def _type(bits: int, signed: bool) -> str:
    return f"{'INT' if signed else 'UINT'}{bits}"


def _drawn_types(draw: random.Random) -> tuple[dict[str, Any], Attributes]:
    """Fields of a product, and the attributes that say the same."""
    bits = {"weight_bits": draw.randint(2, 9), "activation_bits": draw.randint(2, 10)}
    signs = {"signed_activations": draw.random() < 0.4, "signed_weights": draw.random() < 0.8}
    memory = {"ram_style": draw.choice(RAM_STYLES), "mem_mode": draw.choice(MEM_MODES)}
    sums = draw.randint(6, 32) if draw.random() < 0.95 else 50
    attributes = {
        "inputDataType": _type(bits["activation_bits"], signs["signed_activations"]),
        "weightDataType": _type(bits["weight_bits"], signs["signed_weights"]),
        **dict.fromkeys(("outputDataType", "accDataType"), f"INT{sums}"),
        "noActivation": 1,
        **memory,
    }
    return {**bits, **signs, **memory, "accumulator_bits": sums}, attributes


def _matrix_product(draw: random.Random) -> tuple[luts.Node, str, Attributes]:
    fields, attributes = _drawn_types(draw)
    inputs = draw.choice((9, 27, 48, 144, 270, 576))
    outputs, positions = draw.choice(CHANNELS), draw.choice((1, 49, 1024))
    fold = {"pe": draw.choice(divisors(outputs)), "simd": draw.choice(divisors(inputs))}
    narrow = draw.random() < 0.5 and fields["signed_weights"]
    node = luts.MatrixProduct(inputs, outputs, positions, narrow=narrow, **fields, **fold)
    shape = {"MW": inputs, "MH": outputs, "numInputVectors": [positions]}
    return node, "MVAU", {**attributes, **shape, "PE": node.pe, "SIMD": node.simd}


def _depthwise_product(draw: random.Random) -> tuple[luts.Node, str, Attributes]:
    fields, attributes = _drawn_types(draw)
    channels, kernel = draw.choice(CHANNELS), draw.choice(((3, 3), (5, 5), (1, 7)))
    side = draw.choice((1, 7, 16))
    fold = {"pe": draw.choice(divisors(channels)), "simd": draw.choice(divisors(np.prod(kernel)))}
    node = luts.DepthwiseProduct(channels, kernel, side**2, **fields, **fold)
    shape = {"Channels": channels, "Kernel": list(kernel), "Dim": [side, side]}
    return node, "VVAU", {**attributes, **shape, "PE": node.pe, "SIMD": node.simd}


def _thresholds(draw: random.Random) -> tuple[luts.Node, str, Attributes]:
    channels, bits = draw.choice(CHANNELS), draw.randint(1, 9)
    triggers = draw.choice(((0, 0), (0, 0), (128, 0), (64, 1024), (512, 10**6), (0, 256)))
    node = luts.Thresholds(
        *(channels, draw.choice((1, 49, 1024)), draw.randint(2, 24), bits),
        draw.choice(divisors(channels)),
        *triggers,
    )
    attributes = {
        **{"NumChannels": channels, "PE": node.pe, "numSteps": 2**bits - 1, "ActVal": 0},
        **{"inputDataType": "INT24", "weightDataType": f"INT{node.threshold_bits}"},
        **{"outputDataType": f"UINT{bits}", "numInputVectors": [node.positions]},
        **{"depth_trigger_bram": node.bram_from, "depth_trigger_uram": node.uram_from},
    }
    return node, "Thresholding", attributes


def _window(draw: random.Random) -> tuple[luts.Node, str, Attributes]:
    kernel = draw.choice(((3, 3), (3, 3), (5, 5), (2, 2), (1, 1), (3, 5), (1, 5), (7, 1)))
    dilation = (draw.randint(1, 2) if kernel[0] > 1 else 1, draw.randint(1, 2))
    size = [draw.choice((16, 33, 64, 230)) for _ in range(2)]
    if 1 in kernel and kernel != (1, 1):
        size[kernel.index(1)] = 1
    channels, depthwise = draw.choice(CHANNELS), draw.random() < 0.4
    parallel = draw.random() < 0.3
    simd = channels if parallel and not depthwise else draw.choice(divisors(channels))
    stride = tuple(draw.randint(1, 3) if one > 1 else 1 for one in size)
    node = luts.Window(
        *(channels, tuple(size), kernel, draw.randint(1, 10)),
        stride=stride,
        dilation=dilation if kernel != (1, 1) else (1, 1),
        depthwise=depthwise,
        simd=simd,
        parallel=parallel,
        ram_style=draw.choice(RAM_STYLES),
    )
    attributes = {
        **{"ConvKernelDim": list(kernel), "IFMChannels": channels, "IFMDim": size},
        **{"OFMDim": list(node.output_size), "SIMD": simd, "Stride": list(stride)},
        **{"Dilation": list(node.dilation), "depthwise": int(depthwise)},
        **{"parallel_window": int(parallel), "ram_style": node.ram_style},
        **dict.fromkeys(("inputDataType", "outputDataType"), f"UINT{node.activation_bits}"),
    }
    return node, "ConvolutionInputGenerator", attributes


def _converter(draw: random.Random) -> tuple[luts.Node, str, Attributes]:
    node = luts.WidthConverter(draw.randint(1, 48), draw.randint(1, 48))
    widths = {"inWidth": node.input_bits, "outWidth": node.output_bits, "dataType": "UINT1"}
    return node, "StreamingDataWidthConverter", {**widths, "inShape": [1], "outShape": [1]}
