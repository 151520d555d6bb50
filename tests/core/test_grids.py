"""Weight formats: the table by hand; each through subnet, packed file and QONNX, to the bit."""

import json

import numpy as np
import pytest
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from qonnx.transformation.infer_datatypes import InferDataTypes
from sklearn.datasets import load_digits
from torch import nn

from brevitas_multiquant import (
    InPlaceDistillation,
    calibrate,
    cost,
    extract_subnet,
    load_packed,
    multiquantize,
)
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.core.grids import ODD, WEIGHT_FORMATS, signed_bits
from brevitas_multiquant.errors import ConfigError, PackedFileError
from brevitas_multiquant.export import export_onnx, export_qonnx
from brevitas_multiquant.quant.layers import CodeLayer
from brevitas_multiquant.storage.packed_net import save_packed
from tests.packed import rewrite, take_apart

SOURCE = ModelSource("timm", "cifar_resnet8", {"num_classes": 3})
SHAPE = (1, 3, 8, 8)
FORMATS = list(WEIGHT_FORMATS)


def build(weights, bits=(2, 4), **options):
    torch.manual_seed(0)
    net = multiquantize(
        SOURCE.build(),
        bits,
        weights=weights,
        source=SOURCE,
        input_shape=SHAPE,
        branch_init="shuffle",
        **options,
    )
    calibrate(net, [torch.randn(4, *SHAPE[1:])])
    return net.eval()


@pytest.mark.parametrize(
    ("name", "levels", "step", "offset", "divisor", "integer_bits", "is_narrow", "datatype"),
    [
        ("odd", 3, 2, -3, 3, 3, True, "INT3"),
        ("int2", 3, 1, -2, 2, 2, False, "INT2"),
        ("ternary", 2, 1, -1, 1, 2, True, "TERNARY"),
    ],
)
def test_the_table(name, levels, step, offset, divisor, integer_bits, is_narrow, datatype):
    form = WEIGHT_FORMATS[name]
    assert (form.name, form.levels, form.step, form.offset) == (name, levels, step, offset)
    assert (form.divisor, form.integer_bits, form.is_narrow) == (divisor, integer_bits, is_narrow)
    assert form.datatype == datatype
    assert form.negated_datatype == {"INT2": "INT3"}.get(datatype, datatype)
    assert max(abs(integer / divisor) for integer in form.integers) == 1


def test_the_papers_format_is_the_default():
    assert build("odd").config == multiquantize(SOURCE.build(), (2, 4), input_shape=SHAPE).config
    assert ODD is WEIGHT_FORMATS["odd"]


@pytest.mark.parametrize(("lowest", "highest"), [(-128, 127), (-3, 3), (-2, 1), (-1, 0), (0, 1)])
def test_signed_bits_is_the_smallest_that_holds_both(lowest, highest):
    def holds(bits):
        return -(2 ** (bits - 1)) <= lowest and highest <= 2 ** (bits - 1) - 1

    assert signed_bits(lowest, highest) == next(bits for bits in range(1, 9) if holds(bits))


def test_a_wrong_name():
    with pytest.raises(ConfigError, match=r"weights: expected one of \['odd', 'int2', 'ternary'"):
        multiquantize(SOURCE.build(), [2], weights="int3", input_shape=SHAPE)


@pytest.mark.parametrize("weights", FORMATS)
@pytest.mark.parametrize("bits", [(2, 4), (2, 3)])
def test_subnet_and_packed_file_are_equal_to_the_bit(weights, bits, tmp_path):
    net = build(weights, bits)
    images = torch.randn(3, *SHAPE[1:])
    loaded = load_packed(save_packed(net, tmp_path / "net.safetensors"))
    assert loaded.config == net.config
    for bit in bits:
        with torch.no_grad(), net.at_bits(bit), loaded.at_bits(bit):
            expected = net(images)
            assert torch.equal(extract_subnet(net, bit)(images), expected)
            assert torch.equal(loaded(images), expected)


@pytest.mark.parametrize("weights", FORMATS)
def test_layers_compute_with_the_formats_integers(weights):
    net = build(weights)
    form = WEIGHT_FORMATS[weights]
    layers = [m for m in net.branches.modules() if isinstance(m, CodeLayer)]
    integers = torch.cat([layer.quant_weight().flatten() for layer in layers])
    assert tuple(integers.unique().tolist()) == form.integers
    with net.at_bits(2):
        assert {layer.output_scale for layer in layers} == {1 / (form.divisor * 3)}


@pytest.mark.parametrize("weights", FORMATS)
def test_every_format_takes_two_bits_in_a_file(weights, tmp_path):
    net = build(weights)
    assert cost(net).total_bytes == cost(build("odd")).total_bytes
    header, arrays = take_apart(save_packed(net, tmp_path / "net.safetensors"))
    assert header["config"]["weights"] == weights
    layers = [m for m in net.branches[0].modules() if isinstance(m, CodeLayer)]
    assert arrays["branches.0.codes"].size == sum(m.weight.numel() for m in layers) / 4
    first, packed = layers[0].quant_weight().flatten(), arrays["branches.0.codes"]
    q = np.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], 1).flatten()[: first.numel()]
    form = WEIGHT_FORMATS[weights]
    assert np.array_equal(np.array(form.integers)[q], first.int().numpy())


def test_a_file_without_the_field_is_of_odd_integers(tmp_path):
    net = build("odd")
    path = save_packed(net, tmp_path / "net.safetensors")
    rewrite(path, lambda arrays, header: header["config"].pop("weights"))
    images = torch.randn(2, *SHAPE[1:])
    with torch.no_grad():
        assert torch.equal(load_packed(path)(images), net(images))


def test_a_code_that_the_format_does_not_have_is_refused(tmp_path):
    path = save_packed(build("ternary"), tmp_path / "net.safetensors")

    def put_a_three(arrays, header):
        arrays["branches.1.codes"] = arrays["branches.1.codes"].copy()
        arrays["branches.1.codes"][0] = 0b11

    rewrite(path, put_a_three, signed=("arrays", "header"))
    with pytest.raises(PackedFileError, match=r"weight codes from 0 to 2 .* ternary, got 3"):
        load_packed(path)


@pytest.mark.parametrize(
    ("weights", "bits"), [("odd", (2, 3)), ("int2", (2, 4)), ("int2", (2, 3)), ("ternary", (2, 3))]
)
def test_qonnx_holds_the_formats_integers(weights, bits, tmp_path):
    """`export_qonnx` executes each file and compares it with torch."""
    form, net = WEIGHT_FORMATS[weights], build(weights, bits)
    export_qonnx(net, tmp_path)
    report = json.loads((tmp_path / "export.json").read_text())
    for bit in bits:
        compared = report["bits"][str(bit)]["compared"].values()
        assert [comparison["flipped_codes"] for comparison in compared] == [0, 0]
        model = ModelWrapper(str(tmp_path / f"model_{bit}b.onnx")).transform(InferDataTypes())
        weight_nodes = [
            node
            for node in model.get_nodes_by_op_type("Quant")
            if model.get_initializer(node.input[0]) is not None
        ]
        layers = [m for m in net.branches[0].modules() if isinstance(m, CodeLayer)]
        assert len(weight_nodes) == len(layers) * len(net.selection[bit])
        for node in weight_nodes:
            assert np.isin(model.get_initializer(node.input[0]), form.integers).all()
            # a Quant node has no word for ternary: it is a narrow INT2
            assert model.get_tensor_datatype(node.output[0]).name == f"INT{form.integer_bits}"
            assert getCustomOp(node).get_nodeattr("narrow") == form.is_narrow


@pytest.mark.parametrize("weights", ["int2", "ternary"])
def test_onnx_gives_the_classes_of_torch(weights, tmp_path):
    assert set(export_onnx(build(weights), tmp_path)) == {2, 4}


@pytest.mark.parametrize("weights", FORMATS)
def test_every_format_learns(weights):
    """Sixty steps on digits, far above the 10% of chance at both bit-widths."""
    data, labels = load_digits(return_X_y=True)
    images = torch.tensor(data, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    classes = torch.tensor(labels)
    torch.manual_seed(0)
    net = multiquantize(
        small_cnn(), [2, 4], weights=weights, branch_init="shuffle", input_shape=(1, 1, 8, 8)
    )
    calibrate(net, [images[:64]])
    task = InPlaceDistillation(net)
    model = torch.optim.SGD(net.model_parameters(), lr=0.1, momentum=0.9)
    ranges = torch.optim.Adam(net.range_parameters(), lr=1e-4)
    before = [parameter.clone() for parameter in net.range_parameters()]
    for _ in range(60):
        batch = torch.randint(1437, (64,))
        model.zero_grad()
        ranges.zero_grad()
        task.step(images[batch], classes[batch])
        model.step()
        ranges.step()
    assert all((old != new).all() for old, new in zip(before, net.range_parameters(), strict=True))
    net.eval()
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits):
            right = net(images[1437:]).argmax(1) == classes[1437:]
        assert right.float().mean() > 0.5  # 0.75 to 0.87 where it was written


def small_cnn():
    layers = []
    for inputs, channels, stride in ((1, 8, 1), (8, 16, 2), (16, 16, 1)):
        conv = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
